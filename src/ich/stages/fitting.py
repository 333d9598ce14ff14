"""Fitting the networks of all stages: on which rows, with which loss, judged by what, going on from the last epoch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich import ranks
from ich.console import Work, detail, progress, say, warn
from ich.errors import UserError
from ich.pipeline.graph import WEIGHTS
from ich.pipeline.plan import Made, Plan, seed_of
from ich.recipe import BETAS, Backbone, EarlyStopping, Supervised, Training
from ich.stages.inputs import Slices
from ich.stages.member import (
    Checkpoint,
    figures,
    finite,
    leave_bytes,
    leave_history,
    leave_predictions,
    log_loss,
)

if TYPE_CHECKING:
    import numpy as np

    from ich.networks.losses import Loss

Follow = AbstractContextManager[Callable[[Sequence[Mapping[str, float]]], None]]


def splits(slices: Slices, settings: Supervised, fold: int, labels: float = 1.0) -> dict[str, "np.ndarray"]:
    """Row numbers: train, valid (the fold), test, and inner where training patients are set aside to judge epochs.

    labels: share of the training patients whose labels are used. Members of one seed draw the same patients: they can
    be compared, and where one starts from another's weights, those have not seen the patients that judge it.
    """
    from ich.data.folds import patient_share

    train = slices.train_rows(fold)
    rows = {"valid": slices.valid_rows(fold), "test": slices.test_rows}

    def drawn(share: float, purpose: str) -> "np.ndarray":
        """Mask of the training rows of so many patients."""
        patients, positive = slices.table["patient_id"].iloc[train].tolist(), slices.labels[train].max(axis=1) > 0
        try:
            return patient_share(patients, positive, share, seed_of(settings.seed, fold, purpose))
        except ValueError as error:
            raise UserError(f"the {purpose} patients of fold {fold}: {error}") from None

    if labels < 1:
        train = train[drawn(labels, "labels")]
    if settings.early_stopping is not None and settings.early_stopping.on == "inner":
        inner = drawn(settings.early_stopping.share, "inner")
        rows["inner"], train = train[inner], train[~inner]
    return {"train": train, **rows}


def loss_for(settings: Supervised, slices: Slices, labels: "np.ndarray") -> "Loss":
    """The loss of a recipe, its weights worked out from the training labels [n, c]."""
    from ich.networks import losses

    prevalence = labels.mean(axis=0)
    weights: dict[str, Any] = {}
    match settings.loss.weight:
        case "pos_weight":
            weights = {"label_weight": losses.pos_weight(prevalence, settings.loss.largest)}
        case "balanced":
            weights = {"label_weight": losses.balanced(prevalence)}
        case "competition":
            weights = {"class_weight": slices.class_weights}
    return losses.build(**settings.loss.model_dump(exclude={"weight", "largest"}), **weights)


def train_member(
    plan: Plan,
    member: str,
    fold: int,
    fingerprint: str,
    network: Any,
    settings: Supervised,
    slices: Slices,
    rows: Mapping[str, "np.ndarray"],
    *,
    batches: Callable[[int], Any],
    steps: int,
    loss_of: Callable[[Any, Any], Any],
    predict: Callable[[Any, str, Callable[[int], None]], Mapping[str, "np.ndarray"]],
    counts: tuple[int, str],
    record: Mapping[str, Any],
) -> Made:
    """Fit the network, then leave what a fold leaves: weights, history, predictions and embeddings where it has them.

    predict(network, split, advance) gives logits (and embeddings) of the rows of a split, in their order, and tells how
    many it has. counts: how many of what an epoch sees. record: what else the run record should say.
    """
    folder, stop, what = plan.workspace.fold(member, fold), settings.early_stopping, f"{member} fold {fold}"
    judge = "inner" if "inner" in rows else "valid"

    def predicted(model: Any, split: str) -> Mapping[str, "np.ndarray"]:
        with progress(f"{what}, predicting {split}", len(rows[split]), inner=True) as advance:
            return predict(model, split, advance)

    def evaluate(model: Any) -> dict[str, float]:
        logits = {}
        for split in dict.fromkeys(("valid", judge)):
            logits[split] = predicted(model, split)["logits"]
            finite(what, split, slices.ids(rows[split]), {"logits": logits[split]})
        row = {"valid_loss": log_loss(slices, rows["valid"], logits["valid"])}
        if stop is not None:
            row[f"{judge}_{stop.metric}"] = _judged(stop, slices, rows[judge], logits[judge])
        return row

    kept: dict[str, Any] = {}
    if stop is not None:
        larger = stop.metric != "log_loss"
        kept = {"keep_best": f"{judge}_{stop.metric}", "larger_is_better": larger, "patience": stop.patience}
    files, how = fit_network(
        what,
        folder,
        fingerprint,
        network,
        settings,
        seed_of(settings.seed, member, fold),
        batches=batches,
        steps=steps,
        loss_of=loss_of,
        evaluate=evaluate,
        counts=counts,
        follow=tracked(plan, member, f"{member}/fold{fold}", settings),
        **kept,
    )
    metrics: dict[str, float | None] = {}
    for split in ("valid", "test"):
        with enough(what, settings):
            found = predicted(network, split)
        files |= leave_predictions(slices, folder, fold, split, rows[split], found["logits"], found.get("embeddings"))
        if split == "valid":
            metrics = figures(slices, rows[split], found["logits"])
    warnings = []
    if stop is not None and stop.on == "fold":
        warnings.append(f"the best epoch was chosen by {stop.metric} on fold {fold} itself: its score is optimistic")
    return files, {**record, **how, "classes": slices.classes, "metrics": metrics, "warnings": warnings}


def _judged(stop: EarlyStopping, slices: Slices, rows: "np.ndarray", logits: "np.ndarray") -> float:
    """The figure that early stopping goes by."""
    from ich.ensemble import metrics, thresholds
    from ich.ensemble.members import sigmoid

    if stop.metric == "log_loss":
        return log_loss(slices, rows, logits)
    truth, probability = slices.labels[rows], sigmoid(logits)
    if stop.metric == "auc":
        auc = metrics.macro(metrics.class_auc(truth, probability))
        if math.isnan(auc):
            raise UserError("early_stopping.metric auc: no class has both labels in the rows that judge; take log_loss")
        return auc
    columns = zip(truth.T, probability.T, strict=True)
    return metrics.macro([thresholds.exact(y, p, BETAS[stop.metric])[1] for y, p in columns])


def fit_network(
    what: str,
    folder: Path,
    fingerprint: str,
    network: Any,
    settings: Training,
    seed: int,
    *,
    batches: Callable[[int], Any],
    steps: int,
    loss_of: Callable[[Any, Any], Any],
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    counts: tuple[int, str],
    follow: Follow | None = None,
    divisible: bool = True,
    **kept: Any,
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Fit the network in place, from its last finished epoch on; leave history.csv and model.safetensors.

    follow: as of `tracked`. divisible: whether the loss is a mean over the batch; where memory is short, each batch
    then passes in pieces, twice as many each time, from the last finished epoch on. kept: keep_best, larger_is_better
    and patience of FitSettings. Returns the files and what the run record should say. Raises UserError where the loss
    is not a number, and where memory is too short even for single samples.
    """
    from ich.training import checkpoint
    from ich.training.loop import Diverged, FitSettings, OtherState, fit, weights
    from ich.training.memory import free, lost_loader, out_of_memory

    saved = Checkpoint(folder, fingerprint)
    shared = settings.model_dump(include=set(FitSettings.__annotations__) - {"seed"})
    most = min(settings.batch_size, counts[0]) if divisible else 1
    state = saved.load() or {}  # before the first epoch it knows the parts at most
    start = None if "history" in state else {name: value.clone() for name, value in network.state_dict().items()}
    parts = state.get("parts", 1)

    def after_epoch(now: dict[str, Any]) -> None:
        saved.save({**now, "parts": parts})
        says.finished(now["history"])
        heard(now["history"])

    _say_how(what, network, settings, steps, counts)
    with enough(what, settings), _epochs(what, settings.epochs, steps, *counts) as says, follow or _nobody() as heard:
        while True:
            says.begin(len(state.get("history", ())))
            try:
                history = fit(
                    network,
                    lambda epoch: says.counted(epoch, batches(epoch)),
                    loss_of,
                    FitSettings(**shared, **kept, seed=seed),
                    steps_per_epoch=steps,
                    parts=parts,
                    evaluate=evaluate,
                    resume=state if "history" in state else None,
                    save=after_epoch,
                )
                break
            except Diverged as error:
                raise UserError(f"{what}: {error}") from None
            except OtherState as error:
                raise UserError(f"{saved.path}: {error}; delete it to begin anew") from None
            except Exception as error:
                if parts >= most or not out_of_memory(error) or lost_loader(error):
                    raise
                free(error)
                ranks.tell(error)
            network.zero_grad()
            parts, state = min(2 * parts, most), saved.load() or {}
            saved.save({**state, "parts": parts})  # a run that is killed now has to go on in the same way
            if start is not None and "history" not in state:
                network.load_state_dict(start)
            done = len(state.get("history", ()))
            say(f"  {what}: out of memory; from epoch {done + 1} on each batch passes in {parts} parts, for one step")
        heard(history)  # a killed run may have ended between its last state and this
    if len(history) < settings.epochs:
        say(f"  {what}: stopped after epoch {len(history)}, for the figure had not become better for a while")
    files = leave_history(folder / "history.csv", history)
    files |= leave_bytes(folder / WEIGHTS, checkpoint.weights_to_bytes(weights(network)))
    return files, {"parts": parts} | ({"ranks": ranks.count()} if ranks.count() > 1 else {})


@contextmanager
def enough(what: str, settings: Training) -> Iterator[None]:
    """Where the machine turns out too small for what is in this block: UserError, which names the settings to lower."""
    from ich.training.memory import free, lost_loader, out_of_memory

    workers = getattr(settings, "workers", 0)
    try:
        yield
    except Exception as error:
        if workers and lost_loader(error):
            free(error)
            reason = str(error).partition("\n")[0].strip(" .") + "."
            fewer = "" if workers == "auto" else f", or lower than {workers}"
            raise UserError(
                f"{what}: a process that loads pictures was lost, as happens where memory or shared memory (/dev/shm)"
                f" is short: {reason} Set workers to 0{fewer}; what was finished is kept"
            ) from None
        if out_of_memory(error):
            lower = [name for name in ("batch_size", "chunk", "hidden") if hasattr(settings, name)]
            lower += ["image.size"] if isinstance(settings, Backbone) else []
            raise UserError(
                f"{what}: out of memory, although each batch passed in the smallest pieces that it can be cut into;"
                f" lower {', '.join(lower)} or compute.processes, or take a smaller network"
            ) from None
        raise


def tracked(plan: Plan, member: str, run: str, settings: Training) -> Follow:
    """What hears of a training's history after each epoch, and sends it to the trackers of the recipe."""
    from ich.training.trackers import Curves

    names = plan.recipe.compute.trackers
    if not names or not ranks.first():
        return _nobody()
    values = {"member": member, "run": run, **settings.model_dump(mode="json")}
    folder = plan.workspace.trackers.absolute()
    return Curves(names, folder, plan.recipe.name, run, values, lambda text: warn(text, once=True))


def _nobody() -> Follow:
    return nullcontext(lambda _history: None)


def _say_how(what: str, network: Any, settings: Training, steps: int, counts: tuple[int, str]) -> None:
    from ich.training.device import default_device, resolve

    device = default_device()
    parameters = sum(value.numel() for value in network.parameters() if value.requires_grad)
    workers = getattr(settings, "workers", 0)
    detail(
        f"  {what}: {parameters:,} parameters to train on {device} in {resolve(settings.precision, device)};"
        f" {counts[0]:,} {counts[1]} an epoch, in {steps:,} steps of {settings.batch_size}; loader processes: {workers}"
    )


@contextmanager
def _epochs(what: str, epochs: int, steps: int, per_epoch: int, unit: str) -> Iterator["_Epochs"]:
    with progress(what, epochs * per_epoch, unit, inner=True) as work:
        yield _Epochs(what, epochs, steps, per_epoch, work)


class _Epochs:
    """Says how training goes, step by step; and at most eight times a fold, after an epoch, its loss."""

    def __init__(self, what: str, epochs: int, steps: int, per_epoch: int, work: Work) -> None:
        self.what, self.epochs, self.steps, self.per_epoch, self.work = what, epochs, steps, per_epoch, work
        self.seconds = 0.0

    def begin(self, done: int) -> None:
        """Training is begun, where so many epochs were trained before."""
        if done:
            detail(f"  {self.what}: goes on with epoch {done + 1}")
        self.work.begin(done * self.per_epoch)

    def counted(self, epoch: int, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of an epoch; whoever takes the next has done with the last."""
        started = time.monotonic()
        for step, batch in enumerate(batches):
            self._at(epoch, step)
            yield batch
        self._at(epoch, self.steps)
        self.seconds = time.monotonic() - started

    def _at(self, epoch: int, step: int) -> None:
        done = epoch * self.per_epoch + step * self.per_epoch // self.steps
        self.work.at(done, f"epoch {epoch + 1} of {self.epochs}")

    def finished(self, history: Sequence[Mapping[str, float]]) -> None:
        done = len(history)
        detail(f"  {self.what}: epoch {done} took {self.seconds / self.steps:.3g} s a step")
        if done % -(-self.epochs // 8) and done != self.epochs:
            return
        shown = ", ".join(f"{key} {value:.4f}" for key, value in history[-1].items() if "loss" in key)
        say(f"  {self.what}: epoch {done} of {self.epochs}, {shown}{self.work.pace()}")
