"""Charge running attempts now and then, so that a bill is never far behind; the end record settles it exactly."""

from __future__ import annotations

from runner.core.job import Attempt
from runner.daemon.context import Context
from runner.daemon.loop import Loop
from runner.ledger.accounts import AccountKind
from runner.ledger.metering import owed
from runner.service.desk import Change
from runner.state import books


class Meter:
    """Posts what running attempts owe, all in one transaction. Asleep while nothing runs."""

    def __init__(self, context: Context, loop: Loop) -> None:
        self.context = context
        self.loop = loop
        self._armed = False

    def arm(self) -> None:
        """See to it that the next posting comes, while anything runs."""
        if self._armed or not self.context.board.running:
            return
        self._armed = True
        self.loop.after(self.context.config.credits.post_every_s, self._due)

    def _due(self) -> None:
        self._armed = False
        self.context.desk.put(self._post)

    def _post(self, change: Change) -> None:
        now_ns = self.context.clock.monotonic_ns()
        for running in self.context.board.running.values():
            attempt = running.attempt
            if attempt.start_ns is None:
                continue
            elapsed_ns = max(0, now_ns - attempt.start_ns)
            charge(self.context, change, attempt, elapsed_ns, final=False)
        self.arm()


def charge(context: Context, change: Change, attempt: Attempt, elapsed_ns: int, *, final: bool) -> None:
    """Bring an attempt's charges to what it owes after `elapsed_ns` of run time."""
    account_id = context.account_ids.get(attempt.account)
    if account_id is None:
        # The user goes by another name now than when the job was submitted.
        account_id = books.ensure_account(change.connection, attempt.account, AccountKind.USER, now_us=change.now_us).id
    books.charge_attempt(
        change.connection,
        attempt.id,
        account_id,
        owed_micro=owed(attempt.gpu_rate_micro + attempt.cpu_rate_micro, elapsed_ns),
        upto_ns=elapsed_ns,
        final=final,
        now_us=change.now_us,
    )
