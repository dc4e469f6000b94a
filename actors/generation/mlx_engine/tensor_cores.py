"""What kernels for CUDA's tensor cores share: the product of two tiles as a warp computes it.

`mma.m16n8k16` (PTX ISA) adds to a tile of 16 x 8 sums the product of 16 x 16 and 16 x 8 elements of half precision. A
thread, by `quad` = lane / 4 and `place` = lane % 4, has of the sums rows `quad` and `quad` + 8 in columns 2 `place` and
2 `place` + 1; of the first factor the same rows, of the second column `quad`, each at K = 2 `place`, 2 `place` + 1 and
8 more. In which order a tile takes the elements of K is free, as long as both factors have the same.
"""

from __future__ import annotations

import mlx.core as mx

TYPES = (mx.bfloat16, mx.float16)

FUNCTIONS = r"""
#ifndef TENSOR_PRODUCT  // what runs this without a GPU has its own
#define TENSOR_PRODUCT(type, c, a, b0, b1)                                                    \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                        \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
        : "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])                              \
        : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "r"(b0), "r"(b1))
#define PAIRED(x, y, places) __byte_perm(x, y, places)
#endif

struct alignas(16) Piece { WORD at[4]; };

// c += a b, for the parts of a 16 x 16 tile `a` and a 16 x 8 tile `b` that a thread holds.
template <bool HALF>
FUNCTION void multiply(float (&c)[4], const WORD (&a)[4], WORD b0, WORD b1) {
    if constexpr (HALF) {
        TENSOR_PRODUCT("f16", c, a, b0, b1);
    } else {
        TENSOR_PRODUCT("bf16", c, a, b0, b1);
    }
}

// Two numbers as they lie side by side in memory.
template <typename T>
FUNCTION WORD word_of(float x, float y) {
    union { struct { T at[2]; } pair; WORD word; } both;
    both.pair.at[0] = T(x);
    both.pair.at[1] = T(y);
    return both.word;
}
"""
