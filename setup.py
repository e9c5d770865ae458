"""What pyproject.toml cannot say: that the archives depend on the files in them and on nothing else.

Setuptools writes times, owners and permissions of the machine into a source distribution, and permissions into a wheel.
Here every entry gets one time, `SOURCE_DATE_EPOCH` where it is set, one owner and one of two permissions.
"""

import gzip
import os
import tarfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist

EARLIEST = 315532800  # 1980-01-01, the earliest time that a wheel can hold


def seconds() -> int:
    """The time of every entry."""
    return max(EARLIEST, int(os.environ.get("SOURCE_DATE_EPOCH", EARLIEST)))


def permissions(mode: int) -> int:
    """What stays of them: whether a file may be executed."""
    return 0o755 if mode & 0o100 else 0o644


def rewrite_tar(path: Path) -> None:
    """The same files in a .tar.gz, in the order of their names."""
    entries: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(path) as old:
        for info in old.getmembers():
            file = old.extractfile(info) if info.isfile() else None
            entries.append((info, file.read() if file else b""))
    tar = BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as new:
        for old_info, content in sorted(entries, key=lambda entry: entry[0].name):
            info = tarfile.TarInfo(old_info.name)
            info.type, info.size, info.mtime = old_info.type, len(content), seconds()
            info.mode = permissions(old_info.mode)
            new.addfile(info, BytesIO(content))
    path.write_bytes(gzip.compress(tar.getvalue(), mtime=seconds()))


def rewrite_zip(path: Path) -> None:
    """The same files in a wheel, in the order in which they were."""
    with zipfile.ZipFile(path) as old:
        entries = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for old_info, content in entries:
            info = zipfile.ZipInfo(old_info.filename, time.gmtime(seconds())[:6])
            info.create_system = 3  # Unix, whose permissions these are
            info.external_attr = (0o100000 | permissions(old_info.external_attr >> 16)) << 16
            new.writestr(info, content, zipfile.ZIP_DEFLATED)


class SourceDistribution(sdist):
    """Setuptools' command, then `rewrite_tar`."""

    def make_archive(self, *arguments: object, **options: object) -> str:
        """The archive as setuptools makes it, rewritten; its path."""
        path = str(super().make_archive(*arguments, **options))
        rewrite_tar(Path(path))
        return path


class Wheel(bdist_wheel):
    """Setuptools' command, then `rewrite_zip`."""

    def run(self) -> None:
        """Build the wheel and rewrite it."""
        super().run()
        for command, _, path in self.distribution.dist_files:
            if command == "bdist_wheel":
                rewrite_zip(Path(path))


setup(cmdclass={"sdist": SourceDistribution, "bdist_wheel": Wheel})
