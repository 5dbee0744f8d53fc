import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from empathy_jax import hlo


def _cost(text: str, loops: int = 1) -> hlo.Cost:
    return hlo.cost("HloModule a_program\n\n" + textwrap.dedent(text).lstrip("\n"), loops)


LOOP = """
    %body (carry: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
      %carry = (s32[], f32[4,8]{{1,0}}) parameter(0)
      %i = s32[] get-tuple-element(%carry), index=0
      %x = f32[4,8]{{1,0}} get-tuple-element(%carry), index=1
      %w = f32[8,8]{{1,0:S(1)}} constant({{...}})
      %y = f32[4,8]{{1,0}} dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
      %step = s32[] constant({step})
      %j = s32[] add(%i, %step)
      ROOT %next = (s32[], /*index=1*/f32[4,8]{{1,0}}) tuple(%j, %y)
    }}

    %condition (carry.1: (s32[], f32[4,8])) -> pred[] {{
      %carry.1 = (s32[], f32[4,8]{{1,0}}) parameter(0)
      %i.1 = s32[] get-tuple-element(%carry.1), index=0
      %n = s32[] {bound}
      ROOT %less = pred[] compare(%i.1, %n), direction=LT
    }}

    ENTRY %main (a: f32[4,8]) -> (s32[], f32[4,8]) {{
      %a = f32[4,8]{{1,0}} parameter(0)
      %begin = s32[] constant({begin})
      %start = (s32[], f32[4,8]{{1,0}}) tuple(%begin, %a)
      ROOT %loop = (s32[], f32[4,8]{{1,0}}) while(%start), condition=%condition, body=%body{known}
    }}
"""
ONE = 2 * 4 * 8 * 8


@pytest.mark.parametrize(
    ("bound", "known", "count", "guessed"),
    [
        ("constant(6)", "", 6, 0),
        ("constant(6)", ', backend_config={"known_trip_count":{"n":"9"}}', 9, 0),
        ("get-tuple-element(%carry.1), index=0", "", 5, 1),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(bound, known, count, guessed):
    found = _cost(LOOP.format(bound=bound, known=known, begin=0, step=1), loops=5)
    assert found.flops == count * ONE and found.guessed == guessed
    # Read x, written y; w lies on the chip. The counter is increased, and compared to a bool.
    assert found.bytes == count * (2 * 4 * 8 * 4 + 12 + 9)


@pytest.mark.parametrize(("begin", "step", "count"), [(0, 2, 3), (2, 2, 2), (1, 2, 3), (4, 1, 2)])
def test_a_loop_that_begins_late_or_takes_long_steps(begin, step, count):
    text = LOOP.format(bound="constant(6)", known="", begin=begin, step=step)
    assert _cost(text).flops == count * ONE


def test_a_fusion_reads_of_a_sliced_operand_the_slice_and_writes_what_it_updates():
    found = _cost("""
        %fused (all: f32[10,4,8], at: s32[], into: f32[10,4,8]) -> f32[10,4,8] {
          %all = f32[10,4,8]{2,1,0} parameter(0)
          %at = s32[] parameter(1)
          %into = f32[10,4,8]{2,1,0} parameter(2)
          %zero = s32[] constant(0)
          %one = f32[1,4,8]{2,1,0} dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,4,8}
          ROOT %put = f32[10,4,8]{2,1,0} dynamic-update-slice(%into, %one, %at, %zero, %zero)
        }

        ENTRY %main (a: f32[10,4,8], i: s32[], b: f32[10,4,8]) -> f32[10,4,8] {
          %a = f32[10,4,8]{2,1,0} parameter(0)
          %i = s32[] parameter(1)
          %b = f32[10,4,8]{2,1,0} parameter(2)
          ROOT %made = f32[10,4,8]{2,1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
        }
    """)
    assert found.bytes == 2 * 4 * 8 * 4 + 4


@pytest.mark.parametrize(
    ("batch", "window"),
    [(3, "size=3 stride=2 lhs_dilate=3"), (2, "size=2 stride=2 pad=1_1 rhs_reversal=1")],
)
def test_a_tpus_batched_product_is_a_convolution_with_one_valid_place_a_batch(batch, window):
    found = _cost(
        """
        ENTRY %main (a: bf16[BATCH,16,8], b: bf16[BATCH,8,32]) -> f32[BATCH,16,32] {
          %a = bf16[BATCH,16,8]{2,1,0} parameter(0)
          %b = bf16[BATCH,8,32]{2,1,0} parameter(1)
          ROOT %c = f32[BATCH,16,32] convolution(%a, %b), window={WINDOW}, dim_labels=0bf_0io->0bf
        }
    """.replace("WINDOW", window).replace("BATCH", str(batch))
    )
    assert found.flops == batch * 2 * 16 * 32 * 8


def test_collectives_with_their_groups_in_every_spelling():
    found = _cost("""
        %add (x: f32[], y: f32[]) -> f32[] {
          %x = f32[] parameter(0)
          %y = f32[] parameter(1)
          ROOT %sum = f32[] add(%x, %y)
        }

        %all-reduce-scatter (input: f32[8,4]) -> f32[2,4] {
          %input = f32[8,4]{1,0} parameter(0)
          %reduced = f32[8,4]{1,0} all-reduce(%input), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
          %at = s32[] constant(0)
          ROOT %own = f32[2,4]{1,0} dynamic-slice(%reduced, %at, %at), dynamic_slice_sizes={2,4}
        }

        ENTRY %main (a: f32[8,4]) -> f32[16,4] {
          %a = f32[8,4]{1,0} parameter(0)
          %part = f32[2,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
          %start = (f32[2,4], f32[8,4]) all-gather-start(%part), replica_groups=[2,4]<=[4,2]T(1,0)
          %done = f32[8,4]{1,0} all-gather-done(%start)
          %sum = f32[8,4] all-reduce(%done), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}
          %moved = f32[8,4]{1,0} collective-permute(%sum), source_target_pairs={{0,0},{1,3},{3,1}}
          ROOT %whole = f32[16,4]{1,0} all-gather(%moved), replica_groups={}, dimensions={0}
        }
    """)
    assert found.collectives == {
        hlo.Collective("reduce-scatter", 8 * 4 * 4, (0, 2, 4, 6)): 1,
        hlo.Collective("all-gather", 8 * 4 * 4, (0, 2, 4, 6)): 1,
        hlo.Collective("all-reduce", 8 * 4 * 4, (0, 1, 4, 5)): 1,
        hlo.Collective("collective-permute", 8 * 4 * 4, (1, 3)): 1,
        hlo.Collective("all-gather", 16 * 4 * 4, ()): 1,
    }


def test_of_branches_the_dearest_and_kernels_are_told():
    found = _cost("""
        %cheap (p: f32[4,8]) -> f32[4,8] {
          ROOT %p = f32[4,8]{1,0} parameter(0)
        }

        %dear (q: f32[4,8]) -> f32[4,8] {
          %q = f32[4,8]{1,0} parameter(0)
          ROOT %k = f32[4,8]{1,0} custom-call(%q), custom_call_target="tpu_custom_call"
        }

        ENTRY %main (n: s32[], a: f32[4,8]) -> f32[4,8] {
          %n = s32[] parameter(0)
          %a = f32[4,8]{1,0} parameter(1)
          ROOT %c = f32[4,8]{1,0} conditional(%n, %a, %a), branch_computations={%cheap, %dear}
        }
    """)
    assert found.kernels == 1 and found.bytes == 2 * 4 * 8 * 4


def test_a_kernels_attributes_may_take_several_lines():
    kernel = """%k = f32[4,8]{{1,0}} custom-call(%x), custom_call_target="tpu_custom_call", attributes={{a={{
      "x":"{{y: 1}}"
    }}}}
      %y = f32"""
    text = LOOP.replace("%y = f32", kernel, 1).format(
        bound="constant(6)", known="", begin=0, step=1
    )
    found = _cost(text)
    assert found.flops == 6 * ONE and found.kernels == 6


def test_a_slice_that_is_fetched_moves_what_it_takes():
    found = _cost("""
        ENTRY %main (a: bf16[64,8]) -> bf16[16,8] {
          %a = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
          %f = ((bf16[64,8]{1,0:T(8,128)(2,1)}), bf16[16,8]{1,0:S(1)}, pred[]) slice-start(%a)
          ROOT %d = bf16[16,8]{1,0:S(1)} slice-done(%f)
        }
    """)
    assert found.bytes == 2 * 16 * 8 + 2  # read to the chip; and a flag, there and back


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.cost("nothing")


def test_a_real_program_on_eight_devices():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    @jax.jit
    def program(x, w):
        def layer(x, w):
            # Cut along what is summed over: each device has a part of every sum.
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), place(None, "x")), None

        return jax.lax.scan(layer, x, w)[0]

    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=place(None, "x"))
    w = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=place(None, "x", None))
    found = hlo.cost(program.lower(x, w).compile().as_text())
    assert found.flops == 5 * 2 * 16 * 32 * 32 / 8
    (collective,) = found.collectives
    assert collective.kind in ("all-reduce", "reduce-scatter")
    assert collective.bytes == 16 * 32 * 4 and found.collectives[collective] == 5
    assert len(collective.group) in (0, 8) and not found.guessed
