"""The operator project against what CANN and MindSpore publish: `make check-ascend ASC_DEVKIT=<checkout>`.

ASC_DEVKIT names a checkout of asc-devkit; metadef, ge, runtime and asc-tools of the same organisation lie beside it.
Nothing of them is kept: what is built from them goes to build/. Each rung prints how far the project came; an error of
ours makes the exit status 1, a missing checkout 2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore
from mindspore.ops.operations._custom_ops_utils import CustomCodeGenerator, CustomInfoGenerator

from ms_ce.ops.ascend import operators as ascend_operators
from tests.ascend.host_model import CPP_TYPES, PROJECT

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "ascend"
STUBS = HERE / "toolchain"
HOLDS = {
    "asc-devkit": "the kernels' headers, the platform query and op_build",
    "metadef": "the operator registry",
    "ge": "the graph's headers",
    "runtime": "the platform's headers",
    "asc-tools": "the project template that MindSpore's custom_compiler copies",
}
SECUREC = Path(mindspore.__file__).parent / "include" / "third_party" / "include"
OLD_ABI = "-D_GLIBCXX_USE_CXX11_ABI=0"  # of CANN's libraries and of its template


class Rung:
    """What was tried, what it reached and the errors of ours that stopped it."""

    def __init__(self, what: str):
        self.what, self.reached, self.errors = what, "", []

    def __str__(self) -> str:
        lines = [f"{'FAILED' if self.errors else 'ok':7} {self.what}", f"        {self.reached}"]
        return "\n".join(lines + [f"        {error}" for error in self.errors[:20]])


def run(command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)


def errors_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r"\b(fatal )?error:", line)]


class Cann:
    """As much of an installed CANN as can be put together from public sources."""

    def __init__(self, checkouts: dict[str, Path]):
        self.checkouts, self.root = checkouts, BUILD / "cann"
        self.include = self.root / "include"

    def assemble(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        external = self.checkouts["metadef"] / "inc" / "external"
        graph = self.checkouts["ge"] / "inc" / "graph_metadef"
        devkit, runtime = self.checkouts["asc-devkit"], self.checkouts["runtime"]
        for source, place in (
            (external, "."),
            (external, "external"),
            (external / "asc", "."),
            (graph / "external", "."),
            (devkit / "include" / "utils" / "tiling", "tiling"),
            (runtime / "pkg_inc" / "platform", "platform"),
            (SECUREC, "."),
        ):
            shutil.copytree(source, self.include / place, dirs_exist_ok=True)
        templates = self.checkouts["asc-tools"] / "utils" / "templates" / "op_project_templates"
        shutil.copytree(templates, self.root / "tools" / "op_project_templates")
        for name in ("lib64", "toolkit/tools/opbuild", "bin"):
            (self.root / name).mkdir(parents=True)

    def host_rung(self) -> Rung:
        rung = Rung("op_host as C++11, as CANN's template compiles it, against the public registry")
        command = ["g++", "-std=c++11", OLD_ABI, "-fsyntax-only", "-Wall", "-Wextra"]
        source = PROJECT / "op_host" / "ms_ce_ops.cpp"
        done = run([*command, "-isystem", self.include, source])
        rung.errors = errors_in(done.stderr)
        rung.reached = "compiled" if done.returncode == 0 else "the compiler's messages follow"
        return rung

    def build_op_build(self) -> list[str]:
        """op_build and the library of operator definitions, from their sources; messages where they do not compile."""
        metadef, devkit = self.checkouts["metadef"], self.checkouts["asc-devkit"]
        runtime = self.checkouts["runtime"]
        folders = [
            metadef,
            self.include,
            metadef / "inc",
            metadef / "pkg_inc",
            self.checkouts["ge"] / "inc" / "graph_metadef",
            devkit / "tools" / "build" / "common",
            runtime / "pkg_inc",
            runtime / "pkg_inc" / "base",
            runtime / "include" / "dfx",
        ]
        library = [*(metadef / "base" / "asc" / "opdef").glob("*.cc"), STUBS / "stand_ins.cpp"]
        library += [
            metadef / "base" / "type" / f"{n}.cc" for n in ("ascend_string_impl", "types_impl")
        ]
        # The factory first: the others enter themselves into it before the program starts.
        tool = sorted(
            (devkit / "tools" / "build" / "opbuild").glob("*.cpp"),
            key=lambda source: (source.stem != "op_generator_factory", source.stem),
        )
        objects = BUILD / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        options = ["-std=c++17", "-w", "-fPIC", OLD_ABI, "-DNO_OPERATOR_IMPL"]
        options += [f"-I{folder}" for folder in folders]

        def compiled(source: Path) -> list[str]:
            target = objects / f"{source.name}.o"
            if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
                return []
            return errors_in(run(["g++", *options, "-c", source, "-o", target]).stderr)

        with ThreadPoolExecutor(2) as pool:
            failed = [e for errors in pool.map(compiled, [*library, *tool]) for e in errors]
        if failed:
            return failed
        libraries = self.root / "lib64"
        parts = [objects / f"{source.name}.o" for source in library]
        done = run(["g++", "-shared", *parts, "-o", libraries / "libregister.so"])
        for name in ("exe_graph", "tiling_api"):
            run(["g++", "-shared", "-x", "c++", "/dev/null", "-o", libraries / f"lib{name}.so"])
        program = self.root / "toolkit" / "tools" / "opbuild" / "op_build"
        link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lregister", "-ldl"]
        parts = [objects / f"{source.name}.o" for source in tool]
        linked = run(["g++", *parts, *link, "-o", program])
        return errors_in(done.stderr + linked.stderr) or (
            [linked.stderr[-300:]] if linked.returncode else []
        )

    def definitions_rung(self) -> Rung:
        rung = Rung(
            "op_build, from its public source, reads the definitions and writes the aclnn functions"
        )
        broken = self.build_op_build()
        if broken:
            rung.reached = f"op_build does not build from these checkouts: {broken[0][-200:]}"
            return rung
        generated = BUILD / "generated"
        shutil.rmtree(generated, ignore_errors=True)
        (generated / "op_api" / "include").mkdir(parents=True)
        library = generated / "libascend_all_ops.so"
        command = ["g++", "-std=c++11", OLD_ABI, "-fPIC", "-shared", "-w", f"-I{self.include}"]
        command += [PROJECT / "op_host" / "ms_ce_ops.cpp", "-o", library]
        command += [f"-L{self.root / 'lib64'}", "-lregister"]
        done = run(command)
        if done.returncode == 0:
            program = self.root / "toolkit" / "tools" / "opbuild" / "op_build"
            units = f"--compute_unit={';'.join(ascend_operators.SOCS)}"
            place = {"LD_LIBRARY_PATH": str(self.root / "lib64")}
            done = run([program, library, generated, units], env={**os.environ, **place})
        if done.returncode:
            rung.errors = [(done.stdout + done.stderr)[-400:]]
            return rung
        for header in generated.glob("aclnn_*.h"):
            shutil.copy(header, generated / "op_api" / "include")
        rung.errors = prototypes_that_differ(generated)
        count = len(ascend_operators.OPERATORS)
        rung.reached = f"{count} prototypes, to MindSpore's parser the same as our registration"
        return rung

    def build_rung(self) -> Rung:
        """build.sh with MindSpore's own setup.py."""
        rung = Rung("build.sh: MindSpore's custom_compiler drives CANN's project template")
        install = BUILD / "opp"
        install.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "ASCEND_HOME_PATH": str(self.root),
            "ASCEND_OPP_PATH": str(install),
            "PYTHONPATH": "",
            "GLOG_v": "1",
        }
        done = run(["bash", PROJECT / "build.sh"], env=environment, cwd=BUILD)
        log = done.stdout + done.stderr
        (BUILD / "build.log").write_text(log)
        rung.reached, rung.errors = where_it_ended(log)
        return rung


# The steps of the template in order, and what its log shows once a step is done.
STEPS = (
    ("MindSpore's setup.py copied template and sources", r"Opbuild generating sources"),
    (
        "op_host compiled, op_build wrote the aclnn functions, CMake is configured",
        r"Generating done",
    ),
    ("the operators' inference compiled for their library", r"Linking CXX shared library"),
)
ABSENT = re.compile(r"cannot find -l(\w+)|(\S*(?:bisheng|ccec|opc)\S*): (?:not found|No such file)")


def where_it_ended(log: str) -> tuple[str, list[str]]:
    """The steps that were done with the part of CANN that stopped the next one, and errors that name our sources or
    come before all steps are done."""
    done = [what for what, mark in STEPS if re.search(mark, log)]
    ours = [line for line in errors_in(log) if re.search(r"/op_(host|kernel)/ms_ce", line)]
    absent = ABSENT.search(log)
    if len(done) < len(STEPS) or absent is None:
        ours = ours or [line for line in log.splitlines() if "rror" in line][-5:]
    needs = f"; the next needs {absent[1] or absent[2]} of an installed CANN" if absent else ""
    return "; ".join(done) + needs, ours


def prototypes_that_differ(generated: Path) -> list[str]:
    """Where MindSpore's parser finds other types in a generated header than our registration has."""
    before = os.environ.get("ASCEND_CUSTOM_OPP_PATH")
    os.environ["ASCEND_CUSTOM_OPP_PATH"] = str(generated)
    differ = []
    for name in ascend_operators.OPERATORS:
        found = CustomInfoGenerator(f"aclnn{name}").get_aclnn_api_types()
        found[-2:] = ["int64_t*", "aclOpExecutor**"]  # the workspace's size and the executor
        ours = CustomCodeGenerator().get_api_types_by_reg_info(ascend_operators.registration(name))
        if found != ours:
            differ.append(f"aclnn{name} takes {found}, registered are {ours}")
    if before is None:
        del os.environ["ASCEND_CUSTOM_OPP_PATH"]
    else:
        os.environ["ASCEND_CUSTOM_OPP_PATH"] = before
    return differ


class Kernels:
    """The kernels against the public headers for arch 2201, which is that of Atlas A2 and A3."""

    DEFINES = ("__NPU_ARCH__=2201", "__DAV_C220__", "__DAV_C220_VEC__", "__DAV_VEC__")
    FOLDERS = (
        "include",
        "include/basic_api",
        "include/utils",
        "include/adv_api",
        "impl",
        "impl/basic_api",
    )

    def __init__(self, devkit: Path):
        self.place = BUILD / "kernels"
        (self.place / "kernel_tiling").mkdir(parents=True, exist_ok=True)
        (self.place / "kernel_tiling" / "kernel_tiling.h").touch()
        self.options = ["-std=c++17", "-fsyntax-only", "-w", "-fpermissive", "-fmax-errors=0"]
        self.options += [f"-D{define}" for define in self.DEFINES]
        self.options += [
            f"-I{self.place}",
            "-include",
            str(STUBS / "chip.h"),
            f"-I{PROJECT / 'op_kernel'}",
        ]
        self.options += [f"-I{devkit / folder}" for folder in (*self.FOLDERS, ".")]
        self.names: dict[str, str] = {}

    def compile(self, source: Path, dtype: str) -> str:
        defines = [f"-DDTYPE_LOGITS={dtype}", f"-DDTYPE_LOG_PROB={dtype}"]
        return run(["g++", *self.options, *defines, source]).stderr

    def learn(self, text: str) -> bool:
        """Declares the names that a compilation asked for: intrinsics, and what else the chip's compiler knows."""
        unknown = r"‘(\w+)’ (was not declared|has not been declared|does not name a type)"
        found = dict(re.findall(unknown, text))
        for name in re.findall(r"no arguments to ‘(\w+)’ that depend", text):
            found[name] = "was not declared"
        new = {n: self.declaration(n, how) for n, how in found.items() if n not in self.names}
        self.names.update(new)
        lines = ["#pragma once", *(self.names[n] for n in sorted(self.names))]
        (self.place / "intrinsics.h").write_text("\n".join(lines) + "\n")
        return bool(new)

    def declaration(self, name: str, how: str) -> str:
        if how != "was not declared":
            return f"struct {name};"
        if name.isupper():
            return f"constexpr int {name} = {len(self.names)};"
        return f"template <typename... A> inline long {name}(A...) {{ return 0; }}"

    def rung(self) -> Rung:
        rung = Rung(
            "the kernels against the public headers of arch 2201, intrinsics declared by name"
        )
        kernels = sorted((PROJECT / "op_kernel").glob("*.cpp"))
        jobs = [(source, dtype) for source in kernels for dtype in CPP_TYPES.values()]
        self.learn("")
        while self.learn(self.compile(*jobs[0])):
            pass
        failed, learnt = jobs, True
        while failed and learnt:
            with ThreadPoolExecutor(2) as pool:
                texts = list(pool.map(lambda job: self.compile(*job), failed))
            found = {job: ours_among(text) for job, text in zip(failed, texts, strict=True)}
            learnt, failed = self.learn("\n".join(texts)), [job for job in failed if found[job]]
        for source, dtype in failed:
            rung.errors += [f"{source.stem} {dtype}: {line}" for line in found[source, dtype]]
        if not ours_among(self.compile(self.broken(), "half")):
            rung.errors.append("a kernel with a wrong argument passes: this rung sees nothing")
        rung.reached = (
            f"{len(kernels)} kernels × {len(CPP_TYPES)} dtypes; {len(self.names)} names declared"
        )
        return rung

    def broken(self) -> Path:
        """A kernel that passes a count where the API takes a tensor, deep in its templates."""
        folder = self.place / "op_kernel"
        shutil.copytree(PROJECT / "op_kernel", folder, dirs_exist_ok=True)
        path = folder / "ms_ce_finish.h"
        path.write_text(
            path.read_text().replace("Ln(logSum, logSum, rows)", "Ln(logSum, rows, rows)")
        )
        return folder / "ms_ce_forward.cpp"


def ours_among(text: str) -> list[str]:
    """Errors in our sources, or in a header on the way from them. The headers have hundreds of their own without the
    compiler that they are for."""
    ours, context = [], []
    for line in text.splitlines():
        if errors_in(line):
            if any("/op_kernel/ms_ce" in place for place in (*context, line)):
                ours.append(line)
            context = []
        elif re.search(
            r"required from|In instantiation of|In (static )?(member )?function|In substitution",
            line,
        ):
            context.append(line)
    return ours


def checkouts(devkit: str | None) -> dict[str, Path]:
    """The checkouts by name; leaves the program with what is missing."""
    if not devkit:
        print(
            "check-ascend: ASC_DEVKIT is not set. It must name a checkout of asc-devkit, beside which lie"
        )
        for name, what in list(HOLDS.items())[1:]:
            print(f"  {name}: {what}")
        sys.exit(2)
    places = {name: Path(devkit).resolve().parent / name for name in HOLDS}
    places["asc-devkit"] = Path(devkit).resolve()
    missing = {name: place for name, place in places.items() if not place.is_dir()}
    for name, place in missing.items():
        print(f"check-ascend: no checkout of {name} ({HOLDS[name]}) at {place}")
    if missing:
        sys.exit(2)
    return places


def main() -> int:
    places = checkouts(os.environ.get("ASC_DEVKIT"))
    BUILD.mkdir(parents=True, exist_ok=True)
    cann = Cann(places)
    cann.assemble()
    rungs = []
    for climb in (
        cann.host_rung,
        cann.definitions_rung,
        cann.build_rung,
        Kernels(places["asc-devkit"]).rung,
    ):
        rungs.append(climb())
        print(rungs[-1], flush=True)
    print(
        "not tried: the compiler for the chip (bisheng, opc) and its simulator, which are closed; the device"
    )
    return int(any(rung.errors for rung in rungs))


if __name__ == "__main__":
    sys.exit(main())
