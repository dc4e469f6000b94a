// Every kernel, in the namespace of the instruction set that includes this.
namespace {
#include "convert.inl"
#include "arrange.inl"
#include "quantized.inl"
#include "dense.inl"
#include "product.inl"
}  // namespace

#define MLX_SERVING_TABLE(NAME)                                                                                  \
  {NAME, kTileRows, kTileColumns, arranged_size, arrange, quantized_rows, dense_rows, pack_left, pack_quantized, \
   pack_dense, tile_product, widen, narrow}
