"""What is measured: the tests of docs/speed.md's table.

A case is one model of Lutite against one file of the peers. Where the peers' file has a type of its own, it is of the
same shape and has as many weights, so that tokens per second compare work per weight.
"""

from dataclasses import dataclass

from programs import Test

# Peers, as the command line names them. "repacked" is ik_llama.cpp with -rtr 1: weights are laid out anew at loading.
LLAMA, IK, REPACKED, TMAC, BITNET = "llama.cpp", "ik_llama.cpp", "ik_llama.cpp repacked", "T-MAC", "bitnet.cpp"


@dataclass(frozen=True)
class Case:
    name: str
    # Arguments of `lutite bench` that say which model; PACKED stands for what `quantize` makes of --model.
    ours: tuple
    # The peers' file: MODEL, TMAC_MODEL, or a type of random_gguf.TYPES in the shape llama2-7b.
    file: str
    peers: tuple
    tests: tuple
    # Arguments of `lutite quantize`, for a case with PACKED.
    quantize: tuple = ()
    # Also with the greatest number of threads while another program keeps a core busy.
    busy: bool = False


MODEL, TMAC_MODEL, PACKED = "--model", "--tmac-model", "PACKED"
SHAPE = "llama2-7b"


def seven(bits):
    return ("--synthetic", SHAPE, "--bits", str(bits), "--group", "128")


TG16, PP64 = Test("tg", 16), Test("pp", 64)
SMALL = (LLAMA, IK, REPACKED)

SUITE = (
    Case("smollm2 exact", ("-m", MODEL), MODEL, SMALL, (Test("tg", 128),), busy=True),
    Case("smollm2 exact prompt", ("-m", MODEL), MODEL, SMALL, (Test("pp", 512),)),
    Case("smollm2 exact 4k", ("-m", MODEL), MODEL, SMALL, (Test("tg", 32, depth=4096),)),
    Case(
        "smollm2 q=2 g=64",
        ("-m", PACKED),
        MODEL,
        SMALL,
        (Test("tg", 128),),
        quantize=("--bits", "2", "--group", "64", "--params", "hlq8", "--head-bits", "4"),
    ),
    Case("7b q=2", seven(2), "Q2_K", SMALL, (TG16, PP64)),
    Case("7b q=2", seven(2), "TQ2_0", (LLAMA,), (TG16,)),
    # ik_llama.cpp repacks no IQ2_KS.
    Case("7b q=2", seven(2), "IQ2_KS", (IK,), (TG16,)),
    Case("7b q=2", seven(2), "IQ2_BN", (IK, REPACKED), (TG16,)),
    Case("7b q=2", seven(2), "IQ2_K", (IK, REPACKED), (TG16,)),
    Case("7b q=2", seven(2), "I2_S", (BITNET,), (TG16,)),
    Case("7b q=2", seven(2), TMAC_MODEL, (TMAC,), (TG16,)),
    Case("7b q=3", seven(3), "Q3_K", SMALL, (TG16,)),
    Case("7b q=4", seven(4), "Q4_0", SMALL, (TG16,)),
)
