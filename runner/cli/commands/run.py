"""`stoker run`: queue a job and follow it to its end; the exit code is the job's."""

from __future__ import annotations

from runner.cli.commands.submit import print_submitted, submit_batch, tell_plan
from runner.cli.commands.wait import wait_all
from runner.cli.follow import Follower, detach, end_with
from runner.cli.jobs import submission, tell_submitted, waiting_sentence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Submit, then follow unless detached at once."""
    if args.words[:1] == ["-"]:
        ids = submit_batch(args, client, out)
        out.flush()
        return 0 if args.get("detach") else wait_all(ids, client, out, None)
    body = submission(args, out)
    answer = client.post("/v1/jobs", body, key=args.get("idempotency_key") or "")
    if body["dry_run"]:
        return tell_plan(answer, out)
    if args.get("detach"):
        print_submitted(answer, out)
        return 0
    ref = str(answer["id"])
    try:
        tell_submitted(answer, out)
        follower = Follower(client, out, ref, raw=bool(args.get("raw")))
        follower.title = f"job {ref} {answer['name']}"
        out.note(f"{follower.title} · {waiting_sentence(answer)}")
        follower.known(answer)
        return end_with(follower.follow(offset=0), out)
    except KeyboardInterrupt:
        return detach(ref, client, out)
