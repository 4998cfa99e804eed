"""`stoker completion`: the script that lets a shell complete verbs, flags and job ids."""

from __future__ import annotations

import os
from pathlib import Path

from runner.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

BASH = """\
_stoker() {
    local IFS=$'\\n'
    COMPREPLY=($(stoker _complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [ ${#COMPREPLY[@]} -gt 0 ] || compopt -o default
}
complete -F _stoker stoker
"""
ZSH = """\
#compdef stoker
_stoker() {
    local -a found
    found=("${(@f)$(stoker _complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [ -n "$found" ]; then compadd -- $found; else _files; fi
}
if [ "$funcstack[1]" = _stoker ]; then _stoker "$@"; else compdef _stoker stoker; fi
"""
FISH = """\
complete -c stoker -a '(stoker _complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def run(args: Args, client: Client, out: Out) -> int:
    """Print the script of a shell, or put it where the shell finds it."""
    shell = args.action if args.action in SCRIPTS else args.words[0] if args.words else _login_shell()
    if shell not in SCRIPTS:
        raise UsageError(f"no completion for {shell[:60]!r}", hint="bash, zsh or fish")
    if args.action != "install":
        out.data(SCRIPTS[shell].rstrip("\n"))
        return 0
    target = _target(shell)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(SCRIPTS[shell], encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror}", hint=f"stoker completion {shell} prints it"
        ) from None
    out.data(str(target))
    if shell == "zsh":
        out.note(f"needs `fpath+=({target.parent})` before compinit in .zshrc")
    out.note("open a new shell to use it")
    return 0


def _login_shell() -> str:
    return os.path.basename(os.environ.get("SHELL", "bash"))


def _target(shell: str) -> Path:
    home = os.environ.get("HOME")
    if not home:
        raise UsageError("there is no HOME to install into", hint=f"stoker completion {shell} prints the script")
    data = Path(os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config")
    return {
        "bash": data / "bash-completion/completions/stoker",
        "zsh": data / "zsh/site-functions/_stoker",
        "fish": settings / "fish/completions/stoker.fish",
    }[shell]
