"""Triton's interpreter on a machine without a card: what this project's kernels need of it, in every version since 3.6.

It looks through all of triton.language for what it has to replace whenever a kernel calls a function, `tl.sum`
included; once per launch is enough, and several times as fast. And Triton 3.6's takes the bound of a loop for a number
by a conversion that numpy has refused since 2.4.
"""

from __future__ import annotations

import types
from typing import Any

import triton.language as tl  # pyright: ignore[reportMissingImports] — not installed with jumpahead
from triton.runtime import interpreter  # pyright: ignore[reportMissingImports]


def prepare() -> None:
    """From now on, in this process. Does nothing where this version's interpreter is built otherwise."""
    everything: Any = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    whole, scope = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if whole is None or scope is None:
        return
    is_active = [False]

    def patched(fn: Any) -> Any:
        if is_active[0]:
            return scope()
        found = whole(everything)
        found.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
        restore = found.restore

        def restored() -> None:
            is_active[0] = False
            restore()

        found.restore, is_active[0] = restored, True
        return found

    interpreter._patch_lang = patched
