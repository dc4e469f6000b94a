// Every kernel, in the namespace of the instruction set that includes this.
namespace {
#include "convert.inl"
#include "math.inl"
#include "norm.inl"
#include "activation.inl"
#include "rope.inl"
#include "arrange.inl"
#include "quantized.inl"
#include "dense.inl"
#include "product.inl"
#include "attention.inl"
#include "quantize.inl"
#include "draw.inl"
static_assert(kTileRows <= kMostTileRows);
}  // namespace

#define MLX_SERVING_TABLE(NAME)                                                                                      \
  {NAME, kTileRows, kTileColumns, arranged_size, arrange, quantized_rows, dense_rows, nullptr, nullptr, nullptr,     \
   pack_left, pack_quantized, pack_dense, tile_product, widen, narrow, rms_norm, layer_norm, gate_rows, rotate,      \
   attend_few, weigh_tile, widen_quantized, quantize, peak, weigh, collect, adjust}
