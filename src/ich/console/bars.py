"""Bars on a terminal, one for each work; lines are printed above them."""

from ich.console.work import Work, clock

BETWEEN = 0.1  # seconds between two drawings


class Bars:
    """No thread draws them: who forks a process then holds no lock of theirs."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self.progress = Progress(*columns, console=Console(), auto_refresh=False, transient=True, expand=True)
        self.tasks: dict[str, int] = {}
        self.drawn = 0.0
        self.progress.start()

    def show(self, work: Work) -> None:
        state = {"completed": work.share, "figures": work.short()}
        if work.what in self.tasks:
            self.progress.update(self.tasks[work.what], **state)  # pyright: ignore[reportArgumentType]
        else:
            self.tasks[work.what] = self.progress.add_task(work.what, total=1.0, **state)
        if clock() - self.drawn >= BETWEEN:
            self._draw()

    def end(self, what: str) -> None:
        task = self.tasks.pop(what, None)
        if task is not None:
            self.progress.remove_task(task)  # pyright: ignore[reportArgumentType]
            self._draw()

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self.progress.stop()

    def _draw(self) -> None:
        self.drawn = clock()
        self.progress.refresh()
