"""Every path in an object store that asks for credentials; the hosts share no other place."""

import json
import sys
from collections.abc import Iterator

import pytest
from hosts import Hosts, wait_for
from submitted import Job, flags

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PORT, BUCKET = 9000, "lab-data"
SERVE = "import sys; from moto.server import main; main(sys.argv[1:])"
# Until the policy is there nobody is asked who he is.
REQUESTS_BEFORE_POLICY = "4"
LET_IN = """
import json, sys
import boto3
boto3.client("s3").create_bucket(Bucket=sys.argv[1])
iam = boto3.client("iam")
iam.create_user(UserName="lab")
key = iam.create_access_key(UserName="lab")["AccessKey"]
allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="lab", PolicyName="s3", PolicyDocument=json.dumps(allow))
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""


@pytest.fixture(scope="module")
def store_hosts(can_make_hosts: None) -> Iterator[Hosts]:
    """Hosts whose environment tells of a store on the head."""
    pytest.importorskip("moto.server", reason="moto is not installed: no S3 server to test against")
    hosts = Hosts()
    try:
        machines = [hosts.add() for _ in range(3)]
        hosts.more = {
            "AWS_ENDPOINT_URL": f"http://{hosts.head.address}:{PORT}", "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
        }  # fmt: skip
        hosts.head.start(
            sys.executable, "-c", SERVE, "-H", hosts.head.address, "-p", str(PORT), said=hosts.folder / "store",
            INITIAL_NO_AUTH_ACTION_COUNT=REQUESTS_BEFORE_POLICY,
        )  # fmt: skip
        wait_for(lambda: hosts.answers(PORT), 60)
        code, said = hosts.workers[0].run(sys.executable, "-c", LET_IN, BUCKET)
        assert code == 0, said
        key, secret = json.loads(said.splitlines()[-1])
        hosts.more |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        hosts.start_ray(machines)
        yield hosts
    finally:
        hosts.close()


def test_all_stages_work_there(store_hosts: Hosts) -> None:
    """In about three minutes: the pipeline, with two training workers."""
    settings = flags(**{
        "output": f"s3://{BUCKET}/demo", "phantom.shape": (4, 160, 160), "augment.variants": 8,
        "augment.patch_px": 128, "augment.validation_sections": ("1",), "augment.exclude_sections": ("3",),
        "train.base_channels": 4, "train.depth": 2, "train.epochs": 2, "train_workers": 2,
    })  # fmt: skip
    ended = Job(store_hosts.workers[0], "pipeline", *settings).wait(240)
    assert ended.code == 0, ended.said
    assert ended.summary["status"] == "complete"
    again = Job(store_hosts.head, "pipeline", *settings, submit=False).wait()
    assert again.code == 0, again.said
    found = again.summary
    assert (found["augment"]["patches_written"], found["segment"]["blocks_written"]) == (0, 0)
    assert "nothing to do" in found["train"]["note"]


@pytest.mark.parametrize(
    ("place", "environment"),
    [("no-such-bucket", {}), (BUCKET, {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "wrong"})],
    ids=["no bucket", "wrong credentials"],
)
def test_a_store_that_refuses_is_told_in_a_sentence(
    store_hosts: Hosts, place: str, environment: dict[str, str]
) -> None:
    """In a few seconds: no cluster is joined."""
    given = flags(volume=f"s3://{place}/v.zarr", model=f"s3://{place}/m", output=f"s3://{place}/o.zarr")
    ended = Job(store_hosts.head, "segment", *given, submit=False, **environment).wait(60)
    assert ended.code == 2, ended.said
    assert len(ended.said.splitlines()) == 1, ended.said
    assert f"s3://{place}/v.zarr" in ended.said
    assert "wrong" not in ended.said.replace(place, "")
