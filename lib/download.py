"""Fetch a large file so that a broken connection costs nothing: what has arrived is kept, and the next try goes on from it.

pooch keeps checksums, places and unpacking; its own downloader starts from nothing each time, so this one takes its place.
"""

import shutil
from pathlib import Path

import requests
from tqdm.auto import tqdm

CHUNK = 1 << 16
"""Bytes written at a time; a break loses less than this."""

TIMEOUT = 30
"""Seconds without a byte after which a connection counts as broken."""


class DownloadError(OSError):
    """A file could not be fetched whole; the message says what arrived and what to do."""


class ResumingDownloader:
    """A downloader for ``pooch.retrieve`` that continues where the last attempt stopped.

    Args:
        partial: where to keep what has arrived.
        size: bytes of the whole file.
    """

    def __init__(self, partial: Path, size: int) -> None:
        self.partial, self.size = partial, size

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Fetch ``url`` into ``output_file``.

        Raises:
            DownloadError: the connection broke, or the server's file has another size than expected.
        """
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fetch(url)
        except requests.RequestException as error:
            arrived = self.partial.stat().st_size if self.partial.exists() else 0
            raise DownloadError(
                f"the download of {url} stopped after {arrived:,} of {self.size:,} bytes ({type(error).__name__}). "
                "What arrived is kept; run again to go on from there."
            ) from error
        if (arrived := self.partial.stat().st_size) != self.size:
            self.partial.unlink()
            raise DownloadError(f"{url} should have {self.size:,} bytes, but has {arrived:,}; it was not kept")
        shutil.move(self.partial, output_file)

    def _fetch(self, url: str) -> None:
        have = self.partial.stat().st_size if self.partial.exists() else 0
        if have >= self.size:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            # A server that does not know ranges answers 200 with the whole file.
            have = have if response.status_code == requests.codes.partial_content else 0
            with (
                self.partial.open("ab" if have else "wb") as stream,
                tqdm(total=self.size, initial=have, unit="B", unit_scale=True, desc=self.partial.stem) as progress,
            ):
                for chunk in response.iter_content(CHUNK):
                    stream.write(chunk)
                    progress.update(len(chunk))
