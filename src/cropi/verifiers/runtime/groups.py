"""Whole groups for functions that see them: which responses make a job, and what if a call fails.

One response can make the call for its group fail. It is found by calling the function for each
response alone, and leaves the group; the others' rewards come from a call for all of them, never
from groups of one.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import groupby

from cropi.verifiers.runtime.pool import WorkerPool
from cropi.verifiers.verdict import Job, Verdict


def as_jobs(responses: Sequence[Job], group_verifiers: Set[str]) -> list[Job]:
    """Return jobs of one response each, joined where neighbours answer one prompt and have to be.

    `group_verifiers` are the resolved names of those that see whole groups.
    """
    jobs: list[Job] = []
    for _, members in groupby(responses, key=lambda job: (job.prompt, job.rewards)):
        group = list(members)
        whole = any(name in group_verifiers for name, _ in group[0].rewards)
        jobs += [_joined(group)] if whole else group
    return jobs


def _joined(group: Sequence[Job]) -> Job:
    ids = [job.token_ids for job in group]
    token_ids = tuple(i for one in ids if one is not None for i in one)
    return Job(
        group[0].rewards,
        group[0].prompt,
        tuple(text for job in group for text in job.completions),
        token_ids if len(token_ids) == len(group) else None,
        group[0].step,
        group[0].absent,
    )


def judge_jobs(pool: WorkerPool, jobs: Sequence[Job]) -> list[Verdict]:
    """Return one verdict per response, in order."""
    verdicts = pool.judge(jobs)
    failed = [
        n
        for n, job in enumerate(jobs)
        if len(job.completions) > 1 and all(v.status != "ok" for v in verdicts[n])
    ]
    again = _without_culprits(pool, [jobs[n] for n in failed], [verdicts[n] for n in failed])
    for n, others in zip(failed, again, strict=True):
        verdicts[n] = others
    return [verdict for group in verdicts for verdict in group]


def _without_culprits(
    pool: WorkerPool, jobs: Sequence[Job], failures: Sequence[list[Verdict]]
) -> list[list[Verdict]]:
    """Return the verdicts of jobs whose call failed, once responses that fail alone are out.

    Where none or all of them fail alone, the failure is the group's.
    """
    alone = [pool.judge([job.only([n]) for n in range(len(job.completions))]) for job in jobs]
    fit = [[n for n, (v,) in enumerate(verdicts) if v.status == "ok"] for verdicts in alone]
    mixed = [n for n, job in enumerate(jobs) if 0 < len(fit[n]) < len(job.completions)]
    rest = pool.judge([jobs[n].only(fit[n]) for n in mixed]) if mixed else []
    verdicts = list(failures)
    for n, together in zip(mixed, rest, strict=True):
        placed = dict(zip(fit[n], together, strict=True))
        verdicts[n] = [placed.get(place, verdict) for place, (verdict,) in enumerate(alone[n])]
    return verdicts
