"""python describe_wheels.py FOLDER: the folder's wheels as a table; fails where auditwheel would give one another tag.

auditwheel reads of each library which versions of the system's libraries it needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path


def newest(needed: dict[str, list[str]], family: str) -> str:
    """The newest version of a family, say GLIBC, that any library is asked for."""
    versions = {name.partition("_")[::2] for names in needed.values() for name in names}
    return max(
        (version for of, version in versions if of == family),
        key=lambda version: [int(part) for part in version.split(".")],
    )


def main(folder: Path) -> int:
    print("| wheel | bytes | of its library | glibc | GLIBCXX |\n|---|---:|---:|---|---|")
    wrong = []
    for wheel in sorted(folder.glob("*.whl")):
        command = ["auditwheel", "show", "--json", wheel]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        if report["overall_tag"] != wheel.stem.split("-")[-1] or report["external_libs"]:
            wrong.append(f"{wheel.name}: auditwheel would tag it {report['overall_tag']}")
        needed = report["versioned_symbols"]
        library = zipfile.ZipFile(wheel).getinfo("ms_ce/ops/libms_ce.so").file_size
        print(
            f"| `{wheel.name}` | {wheel.stat().st_size:,} | {library:,} "
            f"| {newest(needed, 'GLIBC')} | {newest(needed, 'GLIBCXX')} |"
        )
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
