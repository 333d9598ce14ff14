"""Paths of a recipe's artifacts below the repository."""

from dataclasses import dataclass
from pathlib import Path

from ich.store.hashes import digest

SUBMITTED = {  # files of the probabilities and of the 0/1 decisions, by the one that a competition asks for
    "probabilities": ("submission.csv", "submission_binary.csv"),
    "decisions": ("submission_probabilities.csv", "submission.csv"),
}


@dataclass(frozen=True)
class Workspace:
    """Paths of one recipe below `root`, the repository."""

    root: Path
    recipe: str

    @property
    def cache_root(self) -> Path:
        return self.root / "input" / "cache"

    @property
    def cache_pointer(self) -> Path:
        """File that names the cache folder of the latest `ich prepare`."""
        return self.cache_root / f"{self.recipe}.json"

    @property
    def preparing(self) -> Path:
        """File that names the cache folder and the settings of the cache that several machines write."""
        return self.cache_root / f"{self.recipe}.preparing"

    def raw_files(self, root: str) -> Path:
        """Table of the raw files below `root` as of the latest `ich prepare`."""
        return self.cache_root / f"{digest(root)[:16]}.raw"

    def cache(self, key: str) -> Path:
        return self.cache_root / key

    @property
    def private(self) -> Path:
        """Folder of the secret of pseudonyms and of the lists of real ids."""
        return self.root / "input" / "private"

    @property
    def pseudonyms(self) -> Path:
        """File of that secret."""
        return self.private / "pseudonyms.key"

    @property
    def folds(self) -> Path:
        return self.root / "folds" / f"{self.recipe}.csv"

    @property
    def oof(self) -> Path:
        return self.root / "oof" / self.recipe

    def model(self, name: str) -> Path:
        return self.oof / name

    def fold(self, model: str, fold: int) -> Path:
        return self.oof / model / f"fold{fold}"

    @property
    def trackers(self) -> Path:
        return self.oof / "trackers"

    @property
    def thresholds(self) -> Path:
        return self.oof / "thresholds.json"

    @property
    def submissions(self) -> Path:
        return self.root / "submissions" / self.recipe
