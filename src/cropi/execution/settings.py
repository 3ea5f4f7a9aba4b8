"""Settings of where the work of a run is done, when it is not all done in one process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cropi.settings import Count, Devices, Section


class RaySettings(Section):
    """Workers on a Ray cluster, or on this machine."""

    workers: Count = Field(description="how many workers; fewer start if there is no room for all")
    cpus: Devices = Field(1, description="CPU cores, and threads, of a worker")
    gpus: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="GPUs of a worker: 1, or a part of one that workers share"
    )
    address: str | None = Field(
        None,
        description="a running cluster: auto or HOST:PORT; default: RAY_ADDRESS, or else Ray is "
        "started on this machine",
    )

    @field_validator("address")
    @classmethod
    def _of_node(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError(
                f"{address!r} connects from outside the cluster, where a run could not share its "
                "files with the workers; start cropi on a node of it, and give auto or HOST:PORT"
            )
        return address


class ScaleConfig(Section):
    """Where rollouts and scores are computed; default: one after the other in this process."""

    ray: RaySettings | None = Field(
        None, description="spread rollouts and scoring over workers that Ray places"
    )
