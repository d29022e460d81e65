"""Where a cluster may be made: on Kubernetes, on a cloud's machines, on machines that are there already."""

from __future__ import annotations

from pydantic import Field

from cluster.fields import Count, Image, Label, Positive, Text
from cluster.strict import Strict


class Job(Strict):
    """A RayJob: a cluster of its own for one sweep, gone when the sweep is over."""

    name: Label
    sweep: Text = Field(description="the sweep's file, relative to the values' file")
    retries: Count = Field(1, description="on a fresh cluster each; what is finished is not trained again")
    deadline_hours: Positive | None = None


class Kubernetes(Strict):
    namespace: Label
    operator_namespace: Label = Field("kuberay-system", description="of the KubeRay operator; it asks the head")
    image: Image
    user: Positive = Field(1000, description="user and group id of the image's user")
    pull_secrets: tuple[Label, ...] = ()
    job: Job | None = None


class Cloud(Strict):
    """Machines that Ray's cluster launcher starts and ends."""

    region: Text
    zone: Text
    ssh_user: Text = "ubuntu"
    python: Text = Field("python3.11", description="of the machine image; packages go into an environment beside it")
    disk_gib: Positive = 200
    instance_types: dict[str, Text] = Field(description="for head and for every worker group")


class Aws(Cloud):
    image_id: str | None = Field(None, pattern=r"^ami-", description="default: Ray's choice for the region")
    security_groups: tuple[Text, ...] = Field((), description="default: Ray makes one with port 22 open to everybody")


class Gcp(Cloud):
    project: Text
    source_image: Text = Field(description="of the boot disk, projects/.../global/images/...")


class Local(Strict):
    """Machines that are there already, reached by SSH."""

    head_ip: Text
    worker_ips: tuple[Text, ...] = Field(min_length=1)
    ssh_user: Text
    ssh_private_key: Text = "~/.ssh/id_ed25519"
    python: Text = "python3.11"
