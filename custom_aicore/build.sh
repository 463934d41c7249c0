#!/bin/bash
# Builds the operators of this folder with CANN's project template, as MindSpore's custom_compiler drives it, and installs
# them as vendor ms_ce. Usage: build.sh [install path], default $ASCEND_OPP_PATH. PYTHON chooses the interpreter.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
python="${PYTHON:-python3}"

fail() {
    echo "ms_ce: $1" >&2
    exit 1
}

cann="${ASCEND_HOME_PATH:-}"
[ -n "$cann" ] || fail "CANN was not found: ASCEND_HOME_PATH is not set; source CANN's set_env.sh and run this again"
[ -d "$cann" ] || fail "CANN was not found: ASCEND_HOME_PATH is $cann, which is not a directory"
cann="$(cd "$cann" && pwd -P)"

install="${1:-${ASCEND_OPP_PATH:-}}"
[ -n "$install" ] || fail "no place to install to: ASCEND_OPP_PATH is not set and no path was given"
[ -d "$install" ] || fail "cannot install to $install, which is not a directory"
install="$(cd "$install" && pwd -P)"

compiler="$("$python" -c 'import importlib.util as u; s = u.find_spec("mindspore"); print(s.submodule_search_locations[0] if s else "")')"
[ -n "$compiler" ] || fail "MindSpore was not found by $python; set PYTHON to the interpreter that has it"
compiler="$compiler/lib/plugin/ascend/custom_compiler"
[ -f "$compiler/setup.py" ] || fail "this MindSpore has no custom_compiler at $compiler; install the Ascend package"

# setup.py works in its own folder, which may be read-only or shared, and calls start.sh by a relative name.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$compiler/setup.py" "$compiler/start.sh" "$work/"
# It means cmake/util inside the project; the leading slash would write to the root of the file system.
sed -i 's#"/cmake/util/"#"cmake/util"#' "$work/setup.py"

cd "$work"
"$python" setup.py -o "$project/op_host" -k "$project/op_kernel" --soc_version "ascend910b;ascend910_93" \
    --ascend_cann_package_path "$cann" --vendor_name ms_ce --install_path "$install" -i \
    || fail "the build failed; CANN's messages are above"

library="$install/vendors/ms_ce/op_api/lib/libcust_opapi.so"
[ -f "$library" ] || fail "the build ended without $library"
echo "ms_ce: operators installed in $install/vendors/ms_ce"
case ":${ASCEND_CUSTOM_OPP_PATH:-}:" in
    *":$install/vendors/ms_ce:"*) ;;
    *) echo "ms_ce: before starting Python: export ASCEND_CUSTOM_OPP_PATH=$install/vendors/ms_ce:\$ASCEND_CUSTOM_OPP_PATH" ;;
esac
