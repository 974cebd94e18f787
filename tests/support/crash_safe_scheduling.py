"""Hands out test files to xdist's workers, and goes on where a worker dies.

xdist's own ``LoadFileScheduling`` runs the test that killed its worker again, in the next worker
and the one after, and gives files to a worker that has not collected yet, which ends the session
with a KeyError. Here a test that kills its worker fails once, and the rest of its file runs in the
worker's successor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController


class CrashSafeScheduling(LoadFileScheduling):
    def remove_node(self, node: WorkerController) -> str | None:
        """Takes a worker out; returns the test that it died in, None if it had finished."""
        work = self.assigned_work.pop(node)
        unfinished = [
            (file, test)
            for file, tests in work.items()
            for test, is_done in tests.items()
            if not is_done
        ]
        if not unfinished:
            return None
        file, crashed = unfinished[0]
        work[file][crashed] = True
        for file, tests in reversed(work.items()):
            if not all(tests.values()):
                self.workqueue[file] = tests
                self.workqueue.move_to_end(file, last=False)
        self._give_work()
        return crashed

    def schedule(self) -> None:
        if self.collection is None:
            super().schedule()
        else:
            self._give_work()

    def _give_work(self) -> None:
        for node in self.nodes:
            if node in self.registered_collections:
                self._reschedule(node)
