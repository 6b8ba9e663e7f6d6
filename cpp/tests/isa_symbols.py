"""Each instruction set's object defines only symbols that carry its name.

Anything else (an inline function of the standard library, say) may be compiled with AVX-512 there and then be picked
by the linker for everyone, which crashes on a machine without it.
"""

import subprocess
import sys


def main(nm: str, *objects: str) -> int:
    """Check objects given as NAME=PATH with this nm; return the exit status."""
    strangers = []
    for item in objects:
        isa, path = item.split("=", 1)
        listing = subprocess.run([nm, "--defined-only", path], check=True, capture_output=True, text=True).stdout
        symbols = [line.split()[-2:] for line in listing.splitlines()]
        names = [name for kind, name in symbols if kind.upper() not in "RNSA"]  # code and data, not constants
        if not names:
            strangers.append(f"{path}: defines nothing")
        strangers += [f"{path}: {name}" for name in names if f"3isa{len(isa)}{isa}" not in name]
    print("\n".join(strangers) or "every symbol carries the name of its instruction set")
    return 1 if strangers else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
