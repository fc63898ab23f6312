"""Costs read off compiled programs, against what is known of them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nexttok import chips
from nexttok.aot import hlo, report


def mesh():
    return jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)


def shaped(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), P(*spec)))


@functools.cache
def layers(rounds):
    """Costs of `rounds` products x @ w, rows over 2 and columns over 4 devices."""

    def run(x, w):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh(), P("data", None)))
            return x, None

        return jax.lax.scan(layer, x, w)[0]

    x, w = shaped((16, 32), "data", None), shaped((rounds, 32, 32), None, None, "tensor")
    return hlo.parse(jax.jit(run).lower(x, w).compile().as_text())


@pytest.mark.parametrize("rounds", [2, 7])
def test_a_loop_costs_its_rounds(rounds):
    costs = layers(rounds)
    assert costs.unknown_loops == 0
    assert costs.flops == rounds * 2 * 8 * 32 * 32  # half of the rows, all columns
    (gather,) = costs.collectives
    assert (gather.kind, gather.group, gather.count) == ("all-gather", 4, rounds)
    assert gather.bytes == rounds * 3 * (32 * 8 * 4)  # of w, to the three other devices


LOOP = """
%next (n: u32[], step: u32[]) -> u32[] {
  %n = u32[] parameter(0)
  %step = u32[] parameter(1)
  ROOT %more = u32[] add(%n, %step)
}

%body (s: (f32[8,8], u32[])) -> (f32[8,8], u32[]) {
  %s = (f32[8,8]{1,0}, u32[]) parameter(0)
  %x = f32[8,8]{1,0} get-tuple-element(%s), index=0
  %i = u32[] get-tuple-element(%s), index=1
  %step = u32[] constant(STEP)
  %j = u32[] NEXT
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (f32[8,8]{1,0}, u32[]) tuple(%y, %j)
}

%below (s: (f32[8,8], u32[])) -> pred[] {
  %s = (f32[8,8]{1,0}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%s), index=1
  %most = u32[] constant(7)
  ROOT %less = pred[] compare(%i, %most), direction=LT
}

ENTRY %main (s: (f32[8,8], u32[])) -> (f32[8,8], u32[]) {
  %s = (f32[8,8]{1,0}, u32[]) parameter(0)
  ROOT %end = (f32[8,8]{1,0}, u32[]) while(%s), condition=%below, body=%body
}
"""


@pytest.mark.parametrize("made", ["add(%i, %step)", "fusion(%i, %step), kind=kLoop, calls=%next"])
@pytest.mark.parametrize(("step", "rounds"), [(1, 7), (2, 4), (8, 1)])
def test_a_loop_that_XLA_does_not_count_runs_by_the_steps_of_its_counter(made, step, rounds):
    costs = hlo.parse(LOOP.replace("STEP", str(step)).replace("NEXT", made))
    assert (costs.flops, costs.unknown_loops) == (rounds * 2 * 8**3, 0)


def test_a_loop_whose_counter_is_multiplied_counts_once_and_is_told():
    costs = hlo.parse(LOOP.replace("STEP", "2").replace("NEXT", "multiply(%i, %step)"))
    assert (costs.flops, costs.unknown_loops) == (2 * 8**3, 1)


TPU = """
%take (p: f32[12,256,128], i: s32[]) -> f32[256,128] {
  %p = f32[12,256,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,256,128]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), sizes={1,256,128}
  ROOT %flat = f32[256,128]{1,0:T(8,128)S(1)} bitcast(%slice)
}

ENTRY %main (w: f32[12,256,128], i: s32[]) -> f32[256,128] {
  %w = f32[12,256,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[256,128]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%take
  ROOT %all = f32[256,128]{1,0:T(8,128)} all-reduce(%one), replica_groups=[2,4]<=[8]
}
"""


def test_slices_and_memory_on_the_chip():
    """A layer's weights are read, not the stack of all; what stays on the chip is free."""
    costs, size = hlo.parse(TPU), 256 * 128 * 4
    assert costs.bytes == size + 4 + size  # the slice and its index are read, the sum written
    assert costs.collectives == (hlo.Collective("all-reduce", 4, 1, 2 * size * 3 / 4, 0.0, 1.0),)


def test_a_slice_that_a_fusion_inside_a_fusion_takes_is_all_that_is_read():
    outer = """
%outer (w: f32[12,256,128], i: s32[]) -> f32[256,128] {
  %w = f32[12,256,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %part = f32[256,128]{1,0} fusion(%w, %i), kind=kLoop, calls=%take
  ROOT %twice = f32[256,128]{1,0:T(8,128)S(1)} add(%part, %part)
}
"""
    head, entry = TPU.split("\nENTRY")
    entry = entry.replace("kind=kLoop, calls=%take", "kind=kOutput, calls=%outer")
    text = f"{head}{outer}\nENTRY{entry}"
    assert "calls=%outer" in text
    assert hlo.parse(text).bytes == hlo.parse(TPU).bytes


def test_an_overlapped_collective_counts_once_and_a_sliced_sum_as_scattered():
    config = 'backend_config={"async_collective_fusion_config":{"flag_start":"%s","flag_end":"8"}}'
    begins, goes_on = (TPU.replace("<=[8]", "<=[8], " + config % flag) for flag in ("-1", "2"))
    assert hlo.parse(begins).collectives == hlo.parse(TPU).collectives
    assert hlo.parse(goes_on).collectives == ()
    (found,) = hlo.parse(TPU.replace("%main", "%all-reduce-scatter.1")).collectives
    assert (found.kind, found.bytes) == ("reduce-scatter", 3 / 4 * 256 * 128 * 4)


OVERLAPPED = """
%beside (part: f32[64,128], whole: f32[256,128], x: f32[8,128]) -> (f32[8,128], f32[64,128], f32[256,128], f32[256,128]) {
  %part = f32[64,128]{1,0} parameter(0)
  %whole = f32[256,128]{1,0} parameter(1)
  %x = f32[8,128]{1,0} parameter(2)
  %twice = f32[8,128]{1,0} add(%x, %x)
  %gather = f32[256,128]{1,0} all-gather(%part), replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"FLAG","flag_end":"8"}}
  ROOT %all = (f32[8,128]{1,0}, f32[64,128]{1,0}, f32[256,128]{1,0}, f32[256,128]{1,0}) tuple(%twice, %part, %whole, %gather)
}

ENTRY %main (part: f32[64,128], whole: f32[256,128], x: f32[8,128]) -> f32[8,128] {
  %part = f32[64,128]{1,0} parameter(0)
  %whole = f32[256,128]{1,0} parameter(1)
  %x = f32[8,128]{1,0} parameter(2)
  %done = (f32[8,128]{1,0}, f32[64,128]{1,0}, f32[256,128]{1,0}, f32[256,128]{1,0}) fusion(%part, %whole, %x), kind=kOutput, calls=%beside
  ROOT %out = f32[8,128]{1,0} get-tuple-element(%done), index=0
}
"""  # noqa: E501


def test_arrays_of_a_collective_are_not_moved_by_what_it_overlaps():
    """The fusion that starts it pays for it; the one behind it reads x and writes its double."""
    goes_on, starts = (hlo.parse(OVERLAPPED.replace("FLAG", flag)) for flag in ("2", "-1"))
    assert (goes_on.bytes, goes_on.collectives) == (2 * 8 * 128 * 4, ())
    assert starts.bytes > goes_on.bytes + (64 + 256) * 128 * 4
    assert sum(c.count for c in starts.collectives) == 1


SENT = """
ENTRY %main (g: f32[8,128]) -> f32[8,128] {
  %g = f32[8,128]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[8,128]{1,0}, u32[], token[]) send(%g, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="fusion.5_0",_xla_megascale_transfer_type="KIND"}
  ROOT %out = f32[8,128]{1,0} copy(%g)
}
"""  # noqa: E501


@pytest.mark.parametrize(("kind", "share"), [("all-reduce", 2 * 3 / 4), ("all-gather", 3)])
def test_what_is_handed_to_the_host_goes_to_other_slices(kind, share):
    told = kind.upper().replace("-", "_")
    costs = hlo.parse(SENT.replace("KIND", told), slices=4)
    assert costs.collectives == (hlo.Collective(kind, 1, 4, 0.0, share * 8 * 128 * 4, 1.0),)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,4,8,12},{1,5,9,13}}", 4),
        ("replica_groups=[8,2]<=[4,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=3] {'a','c'}", 12),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x={}", 2),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", 2),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_sizes_of_groups(text, size):
    assert hlo.group_size(text) == size


def test_groups_told_in_an_unknown_way_are_refused():
    with pytest.raises(ValueError, match="no groups"):
        hlo.group_size("replica_groups=ring(8)")


def test_the_roofline_is_the_slowest_part():
    chip = chips.Chip(flops=100.0, memory=1.0, bandwidth=10.0, link=1.0, network=0.5)
    costs = hlo.Costs(200.0, 30.0, (hlo.Collective("all-gather", 16, 2, 7.0, 0.25, 1.0),), 0)
    found = report.roofline(costs, chip, [4, 4], asked=100.0)
    assert found["compute_seconds"] == 2.0
    assert found["memory_seconds"] == 3.0
    # 16 devices are two axes of a 4 x 4 torus, and the network is slower
    assert found["collective_seconds"] == 3.5 + 0.5
    assert found["seconds"] == 4.0
    assert found["mfu_bound"] == 0.25


@pytest.mark.parametrize(
    ("said", "used"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (23.60G) exceeds available HBM (15.75G).",
            23.6,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.",
         20.5),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_by_how_much(said, used):
    found = report.excess(said)
    assert found == {"bytes": used * 2**30, "capacity": 15.75 * 2**30}
    row = dict(program="tokenizer step", parameters=7, batch=8, devices=4, kind="TPU v5 lite",
               mesh={"data": 4}, fits=False)  # fmt: skip
    assert f"does not fit, by {used - 15.75:.2f} GiB or more" in report.table(row | found)


def test_other_errors_are_not_about_memory():
    assert report.excess("INTERNAL: something else") is None
