"""Long work that meets a fault of ours."""

from __future__ import annotations

from runner.core.errors import EXIT_BUG, from_document
from runner.service.operations import Operations
from tests.kit import wait_until


def test_a_fault_of_ours_ends_the_work_as_one() -> None:
    """Whoever follows it exits with the code of a bug, not with that of their own mistake."""
    operation = Operations().begin("push", 1, lambda _: {"result": {}["nothing"]})
    wait_until(lambda: operation.state != "running")
    assert operation.error is not None
    assert from_document(operation.error).exit_code == EXIT_BUG
