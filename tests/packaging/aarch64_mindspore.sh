#!/usr/bin/env bash
# aarch64_mindspore.sh FOLDER WHEEL: the aarch64 wheel under Debian's Python and MindSpore's wheel for aarch64, all of them run by
# qemu-user on this machine. FOLDER keeps what is unpacked; nothing of it is installed.
set -euo pipefail
folder=$(realpath -m "$1") wheel=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
root=$folder/root site=$folder/site

if [ ! -e "$root/usr/bin/python3.11" ]; then
  apt=$folder/apt
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$root"
  : >"$apt/status"
  options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$apt" -o "Dir::State::status=$apt/status"
    -o "Dir::Cache=$apt/cache" -o Debug::NoLocking=1)
  apt-get "${options[@]}" update -qq
  apt-get "${options[@]}" install -qq -y --download-only --no-install-recommends python3.11 libstdc++6 libgomp1
  for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$root"; done
fi

# pip chooses as it would there, the wheel of ms_ce among the rest.
rm -rf "$site"
python -m pip install --quiet --target "$site" --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
  --abi abi3 --abi none $(printf -- '--platform manylinux%s_aarch64 ' _2_28 _2_27 _2_24 _2_17 2014) "$wheel"

cd "$folder"
PATH=$folder/nothing PYTHONPATH=$site GLOG_v=3 "$(command -v qemu-aarch64)" -L "$root" \
  -E "LD_LIBRARY_PATH=$root/usr/lib/aarch64-linux-gnu" "$root/usr/bin/python3.11" "$here/installed_program.py" cpu
