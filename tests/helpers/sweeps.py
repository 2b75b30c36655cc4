"""Sweeps in the tests' short form: options by name, and progress as the numbers of patches done."""

import jaxasr_interp as ji


def plan_of(model, *, window=None, stride=None, alpha=1.0, memory=None, **chosen):
    """`ji.plan_sweep`, with the options among the rest."""
    options = ji.PlanOptions(window=window, stride=stride, alpha=alpha, memory=memory)
    return ji.plan_sweep(model, options=options, **chosen)


def counted(done):
    """A progress callback that appends how much is done."""
    return lambda now, total, phase: done.append(now)
