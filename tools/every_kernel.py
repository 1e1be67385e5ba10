"""A pytest plugin for Triton's interpreter: the session fails if a kernel of the package was never executed.

    TRITON_INTERPRET=1 python -m pytest -p tools.every_kernel -n 2 tests/gpu

Counts kernels and the functions that kernels call, in all workers of pytest-xdist together.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

KEY = "kernels executed"


class EveryKernel:
    """Which of the package's Triton functions were executed, over all processes of the session."""

    def __init__(self) -> None:
        self.executed: dict[str, bool] = {}

    def add(self, executed: dict[str, bool]) -> None:
        for name, is_executed in executed.items():
            self.executed[name] = self.executed.get(name, False) or is_executed

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """Collect what one worker of pytest-xdist has executed."""
        self.add(getattr(node, "workeroutput", {}).get(KEY, {}))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the result to the controller, or, there, fail the session."""
        self.add(executed_kernels())
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[KEY] = self.executed  # pyright: ignore[reportAttributeAccessIssue]
        elif session.exitstatus == pytest.ExitCode.OK and (self.missing() or not self.executed):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for name in self.missing():
            terminalreporter.write_line(f"FAILED: kernel {name} was not executed", red=True)
        count = sum(self.executed.values())
        terminalreporter.write_line(f"{count} of {len(self.executed)} Triton functions were executed.")

    def missing(self) -> list[str]:
        return sorted(name for name, is_executed in self.executed.items() if not is_executed)


def executed_kernels() -> dict[str, bool]:
    """Return each Triton function of the package's imported modules, and whether this process has executed it."""
    from triton.runtime.interpreter import InterpretedFunction  # pyright: ignore[reportMissingImports]

    rewritten = InterpretedFunction.rewritten_fn  # filled when a function is first launched or called
    return {
        f"{module}.{function.fn.__name__}": function.fn in rewritten
        for module, holder in list(sys.modules.items())
        if module.startswith("jumpahead.")
        for function in vars(holder).values()
        if isinstance(function, InterpretedFunction) and function.fn.__module__ == module
    }


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(EveryKernel(), "every-kernel")
