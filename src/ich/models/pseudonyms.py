"""Pseudonyms of patients, studies, series and images, for the files that may be shared (docs/reference/privacy.md).

They are HMAC-SHA256 of the ids, keyed by a secret of the workspace, for competition formats whose ids are not public.
Nothing but the shared files depends on the secret, and no record and no message contains it.
"""

import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import pandas as pd

from ich.data.competitions import ADAPTERS
from ich.errors import UserError
from ich.store.atomic import write_text
from ich.store.paths import Workspace

KINDS = {"patient_id": "patient", "study_id": "study", "series_id": "series", "image_id": "image"}
DIGITS = 16  # 64 bits: no two of a million images have the same pseudonym
BYTES = 32  # of the secret


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms by the secret in `file`. None: ids are public, and all methods return their argument."""

    file: Path | None = None

    @classmethod
    def of(cls, workspace: Workspace, competition: str) -> Self:
        """The pseudonyms of a competition format."""
        return cls(None if ADAPTERS[competition].PUBLIC_IDS else workspace.pseudonyms)

    def of_id(self, column: str, value: str) -> str:
        """The pseudonym of an id in a column of the slice table, such as `patient-3f9a0c51d27be846`."""
        if self.file is None:
            return value
        digest = hmac.digest(self._secret, f"{column}\0{value}".encode(), "sha256")
        return f"{KINDS[column]}-{digest.hex()[:DIGITS]}"

    def hidden(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with pseudonyms instead of ids, and without the column path."""
        if self.file is None:
            return table
        names = {
            column: table[column].map({value: self.of_id(column, value) for value in table[column].unique()})
            for column in table.columns.intersection(list(KINDS))
        }
        return table.drop(columns="path", errors="ignore").assign(**names)

    def revealed(self, table: pd.DataFrame, slices: pd.DataFrame) -> pd.DataFrame:
        """A table with the ids of the slice table instead of their pseudonyms; other values stay as they are."""
        if self.file is None or not self.file.is_file():
            return table
        found: dict[str, pd.Series] = {}
        for column in table.columns.intersection(list(KINDS)):
            names = {self.of_id(column, value): value for value in slices[column].unique()}
            found[column] = table[column].map(names).fillna(table[column])
        return table.assign(**found)

    def write_list(self, path: Path, slices: pd.DataFrame) -> None:
        """Write pseudonyms, ids and path of each slice, for the owner of the scans."""
        if self.file is not None:
            names = self.hidden(slices)[list(KINDS)].rename(columns=KINDS)
            write_text(path, names.join(slices[[*KINDS, "path"]]).to_csv(index=False))

    def adopt(self, secret: bytes) -> None:
        """Write a secret, if there is none. Only its owner may read it."""
        assert self.file is not None, "ids are not public"
        folder = self.file.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(folder / ".gitignore", "*\n")
        with tempfile.NamedTemporaryFile(dir=folder) as new:  # with mode 0600
            new.write(secret)
            new.flush()
            os.fsync(new.fileno())
            with suppress(FileExistsError):  # another process was faster
                os.link(new.name, self.file)

    def require_same(self, secret: bytes | None) -> None:
        """Raise UserError if this is another secret than that of the workspace."""
        if self.file is not None and secret is not None and self.file.read_bytes() != secret:
            raise UserError(
                f"{self.file} is another key than that of the store, so folds/*.csv cannot be exchanged. Use another"
                " store.remote, or move the key away and run `ich folds --force`"
            )

    @cached_property
    def _secret(self) -> bytes:
        """The secret of the workspace. It is made on first use, and only its owner may read it."""
        assert self.file is not None, "ids are not public"
        if not self.file.is_file():
            self.adopt(secrets.token_hex(BYTES).encode())
        with suppress(ValueError):
            secret = bytes.fromhex(self.file.read_text())
            if len(secret) == BYTES:
                return secret
        raise UserError(f"{self.file} is damaged. Restore it, or delete it and run `ich folds --force`")
