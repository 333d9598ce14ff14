"""Paths of a recipe's artifacts below the repository."""

import os
from dataclasses import dataclass
from pathlib import Path

SUBMITTED = {  # files of the probabilities and of the 0/1 decisions, by the one that a competition asks for
    "probabilities": ("submission.csv", "submission_binary.csv"),
    "decisions": ("submission_probabilities.csv", "submission.csv"),
}


def listing(root: Path, without: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Return (size, modification time in ns) of every file below `root` by relative path, sorted.

    It identifies raw data, since hashing the 460 GB of RSNA 2019 takes longer than preparing them. A subfolder that
    cannot be read is listed as `name/`. Raises OSError for `root` itself.
    """
    found: dict[str, tuple[int, int]] = {}
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        if (real := folder.resolve()) in seen:  # links may be circular
            continue
        seen.add(real)
        try:
            entries = os.scandir(folder)
        except OSError:
            if folder == root:
                raise
            found[f"{os.path.relpath(folder, root)}/"] = (0, 0)
            continue
        with entries:
            for entry in entries:
                follow = not entry.is_symlink() or os.path.exists(entry.path)  # not a link to nothing or to itself
                if entry.is_dir(follow_symlinks=follow):
                    folders.append(Path(entry.path))
                elif entry.name not in without:
                    stat = entry.stat(follow_symlinks=follow and entry.is_file())
                    found[os.path.relpath(entry.path, root)] = (stat.st_size, stat.st_mtime_ns)
    return dict(sorted(found.items()))


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

    def cache(self, key: str) -> Path:
        return self.cache_root / key

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
