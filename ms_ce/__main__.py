"""`python -m ms_ce`: versions, instruction set and the table of backends."""

from __future__ import annotations

import platform

import mindspore
import numpy

from ms_ce import __version__, available_backends
from ms_ce.ops import library


def main() -> None:
    print(f"ms_ce {__version__}, mindspore {mindspore.__version__}, numpy {numpy.__version__}, "
          f"python {platform.python_version()}, {platform.machine()}")
    if library.problem() is None:
        sets = ", ".join(library.instruction_sets())
        print(f"kernel: {library.instruction_set()} (this processor runs {sets}; MS_CE_ISA chooses)")
    else:
        print(f"kernel: none: {library.problem()}")
    print("backends, in the order in which 'auto' chooses:")
    for row in available_backends():
        state = "usable" if row.reason is None else f"not usable: {row.reason}"
        print(f"  {row.name:10} {row.device:8} {', '.join(row.dtypes)}")
        print(f"             {row.description}; {state}")


if __name__ == "__main__":
    main()
