#include "block.hpp"

#include <cmath>

#include "../cpu/block.hpp"
#include "arrays.hpp"
#include "primitives.hpp"

namespace mlx_serving {

// The arrays of a layer, kept alive, and where kernels find them.
class BlockWeights {
 public:
  explicit BlockWeights(BlockParameters given) {
    require(given.layers.size() == 7 && given.norms.size() == 2 && given.eps.size() == 2,
            "a block must have seven linear layers and two norms");
    require(given.heads > 0 && given.kv_heads > 0 && given.heads % given.kv_heads == 0,
            "heads must be a multiple of kv_heads");
    cpu::Projection* targets[] = {&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down};
    for (size_t i = 0; i < 7; i++) *targets[i] = projection(given.layers[i]);
    long columns = this->columns(), size = block.q.rows() / given.heads, inner = block.up.rows();
    require(block.q.rows() == size * given.heads && block.k.rows() == size * given.kv_heads &&
                block.v.rows() == block.k.rows() && depth(block.k) == columns && depth(block.v) == columns,
            "query, key and value layers do not fit together");
    require(depth(block.o) == block.q.rows() && block.o.rows() == columns && depth(block.gate) == columns &&
                depth(block.up) == columns && block.gate.rows() == inner && depth(block.down) == inner &&
                block.down.rows() == columns,
            "the layers behind attention do not fit together");
    require(given.rope_dims % 2 == 0 && given.rope_dims > 0 && given.rope_dims <= size,
            "rope_dims must be even and at most the size of a head");
    block.shape = {given.heads, given.kv_heads, size, given.traditional, given.rope_scale, {}};
    frequencies(given);
    block.first = norm(given.norms[0], given.eps[0]);
    block.second = norm(given.norms[1], given.eps[1]);
  }

  long columns() const { return depth(block.q); }

  cpu::Block block;

 private:
  static long depth(const cpu::Projection& layer) {
    return layer.is_quantized ? layer.quantized.columns : layer.dense.columns;
  }

  mx::array keep(const mx::array& given, mx::Dtype dtype) {
    mx::array kept = mx::contiguous(mx::astype(given, dtype, cpu_stream()), false, cpu_stream());
    mx::eval(kept);
    arrays_.push_back(kept);
    return kept;
  }

  // Whether these floats are halves that were widened, as of a model whose file has halves: kept so, they are as exact,
  // and a fourth less of the weights is read for each token.
  static bool fits_half(const mx::array& given) {
    if (given.dtype() != mx::float32) return false;
    mx::Stream stream = cpu_stream();
    mx::array same = mx::equal(mx::astype(mx::astype(given, mx::float16, stream), mx::float32, stream), given, stream);
    return mx::all(same, false, stream).item<bool>();
  }

  cpu::Projection projection(const LinearParameters& given) {
    require(given.weight.size() == 1 || given.weight.size() == 3, "a layer must have one array or three");
    mx::array weight = keep(given.weight[0], given.weight[0].dtype());
    cpu::Projection layer{given.weight.size() == 3, {}, {}, nullptr};
    require(weight.ndim() == 2 || (weight.ndim() == 3 && layer.is_quantized),
            "a weight must have two axes, or three in panels");
    long rows = matrix_rows(weight);
    if (layer.is_quantized) {
      require(given.bits >= 2 && given.bits <= 8 && given.bits != 7, "bits must be 2, 3, 4, 5, 6 or 8");
      require(given.group_size == 32 || given.group_size == 64 || given.group_size == 128,
              "group_size must be 32, 64 or 128");
      bool halve = fits_half(given.weight[1]) && fits_half(given.weight[2]);
      mx::array scales = keep(given.weight[1], halve ? mx::float16 : given.weight[1].dtype());
      mx::array biases = keep(given.weight[2], scales.dtype());
      long columns = long(weight.shape(1)) * 32 / given.bits;
      require(weight.dtype() == mx::uint32 && scales.ndim() == weight.ndim() && scales.shape() == biases.shape() &&
                  scales.shape(0) == weight.shape(0) && scales.shape(1) * long(given.group_size) == columns,
              "scales and biases do not fit a weight");
      if (weight.ndim() == 3) check_panels(weight, scales, given.bits);
      layer.quantized = {weight.data<uint32_t>(), scales.data<void>(), biases.data<void>(), type_of(scales, "scales"),
                         rows, columns, given.group_size, given.bits, weight.ndim() == 3};
    } else {
      long columns = weight.shape(1);
      layer.dense = {weight.data<void>(), type_of(weight, "weight"), rows, columns, columns};
    }
    if (given.bias) {
      require(given.bias->ndim() == 1 && given.bias->shape(0) == rows, "a bias does not fit its weight");
      layer.bias = keep(*given.bias, mx::float32).data<float>();
    }
    return layer;
  }

  cpu::BlockNorm norm(const mx::array& weight, float eps) {
    require(weight.ndim() == 1 && weight.shape(0) == columns(), "a norm's weight does not fit the layer");
    mx::array kept = keep(weight, weight.dtype());
    return {kept.data<void>(), type_of(kept, "norm"), eps};
  }

  void frequencies(const BlockParameters& given) {
    int half = given.rope_dims / 2;
    require(given.base.has_value() != given.freqs.has_value(), "either base or freqs must be given");
    require(!given.base || *given.base > 0.0f, "base must be positive");
    if (given.freqs) {
      require(given.freqs->ndim() == 1 && given.freqs->shape(0) == half, "freqs must be [rope_dims / 2]");
      mx::array freqs = keep(*given.freqs, mx::float32);
      for (int i = 0; i < half; i++) block.shape.frequencies.push_back(1.0f / freqs.data<float>()[i]);
      return;
    }
    for (int i = 0; i < half; i++)
      block.shape.frequencies.push_back(std::exp(float(-i) * (std::log(*given.base) / float(half))));
  }

  std::vector<mx::array> arrays_;
};

namespace {

class EnterBlock : public CpuPrimitive {
 public:
  EnterBlock(mx::Stream stream, std::shared_ptr<const BlockWeights> weights)
      : CpuPrimitive(stream), weights_(std::move(weights)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = contiguous_input(inputs[0], encoder), offset = contiguous_input(inputs[1], encoder);
    for (mx::array& out : outputs) allocate_by_token(out);
    encoder.dispatch([weights = weights_, x = x.data<float>(), rows = long(x.shape(0)), tokens = long(x.shape(1)),
                      first = offset.data<int>(), single = offset.size() == 1, queries = outputs[0].data<float>(),
                      keys = outputs[1].data<float>(), values = outputs[2].data<float>()] {
      std::vector<int> starts(static_cast<size_t>(rows));
      for (size_t row = 0; row < starts.size(); row++) starts[row] = first[single ? 0 : row];
      cpu::enter_block(weights->block, x, rows, tokens, starts.data(), queries, keys, values);
    });
  }
  const char* name() const override { return "mlx_serving::EnterBlock"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return weights_ == static_cast<const EnterBlock&>(other).weights_;
  }

 private:
  std::shared_ptr<const BlockWeights> weights_;
};

class LeaveBlock : public CpuPrimitive {
 public:
  LeaveBlock(mx::Stream stream, std::shared_ptr<const BlockWeights> weights)
      : CpuPrimitive(stream), weights_(std::move(weights)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = contiguous_input(inputs[0], encoder), attended = by_token(inputs[1], encoder);
    allocate(outputs[0]);
    encoder.dispatch([weights = weights_, x = x.data<float>(), attended = attended.data<float>(),
                      count = long(x.shape(0)) * x.shape(1), out = outputs[0].data<float>()] {
      cpu::leave_block(weights->block, x, attended, count, out);
    });
  }
  const char* name() const override { return "mlx_serving::LeaveBlock"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return weights_ == static_cast<const LeaveBlock&>(other).weights_;
  }

 private:
  std::shared_ptr<const BlockWeights> weights_;
};

// Inputs: x, then of each group lengths, and the arrays of keys and those of values of each layer.
class RunStack : public CpuPrimitive {
 public:
  RunStack(mx::Stream stream, std::vector<std::shared_ptr<const BlockWeights>> blocks, float scale, SlabForm form)
      : CpuPrimitive(stream), blocks_(std::move(blocks)), scale_(scale), form_(form) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = contiguous_input(inputs[0], encoder);
    size_t layers = blocks_.size(), arrays = form_.arrays();
    std::vector<cpu::StackGroup> groups;
    for (size_t at = 1; at < inputs.size(); at += 1 + 2 * layers * arrays) {
      cpu::StackGroup group{inputs[at].shape(0), inputs[at + 1].shape(2),
                            contiguous_input(inputs[at], encoder).data<int>(), {}, {}};
      for (size_t layer = 0; layer < layers; layer++) {
        group.keys.push_back(slab_to_write(inputs, at + 1 + layer * arrays, form_, encoder));
        group.values.push_back(slab_to_write(inputs, at + 1 + (layers + layer) * arrays, form_, encoder));
      }
      groups.push_back(std::move(group));
    }
    allocate(outputs[0]);
    encoder.dispatch([blocks = blocks_, groups = std::move(groups), x = x.data<float>(), tokens = long(x.shape(1)),
                      scale = scale_, out = outputs[0].data<float>()] {
      std::vector<const cpu::Block*> layers;
      for (const auto& each : blocks) layers.push_back(&each->block);
      cpu::run_stack(layers, groups, x, tokens, scale, out);
    });
  }
  const char* name() const override { return "mlx_serving::RunStack"; }
  // Writing is not repeatable: two calls are never one.
  bool is_equivalent(const mx::Primitive&) const override { return false; }

 private:
  std::vector<std::shared_ptr<const BlockWeights>> blocks_;
  float scale_;
  SlabForm form_;
};

// The form of slabs of heads of this size, as the shapes of one have it.
SlabForm form_of(const Side& side, long size) {
  require(side.size() == 1 || side.size() == 3, "a slab must be one array, or digits, scales and biases");
  if (side.size() == 1) return {};
  require(side[0].ndim() == 4 && side[1].ndim() == 4 && side[1].shape(3) > 0,
          "quantised slabs must be [slots, kv heads, capacity, ...]");
  return {int(size / side[1].shape(3)), int(side[0].shape(3) * 32L / size)};
}

// Throws unless these are slabs of a layer with such heads in this form, alike, with `rows` slots or more.
void check_layer(const Side& keys, const Side& values, const cpu::BlockShape& shape, SlabForm form, const Side& like,
                 int rows, int tokens) {
  require(keys.size() == form.arrays() && values.size() == form.arrays(), "all slabs must be of one form");
  if (form.bits != 0) check_quantized(keys, values, shape.size, form);
  for (const Side* side : {&keys, &values}) {
    const mx::array &slab = side->front(), &numbers = side->size() == 1 ? slab : (*side)[1];
    require(slab.ndim() == 4 && numbers.dtype() == mx::float32,
            "slabs must be float32 [slots, kv heads, capacity, size], or quantised with scales in float32");
    require(slab.shape() == like.front().shape() && slab.shape(0) >= rows && slab.shape(1) == shape.kv_heads &&
                slab.shape(2) >= tokens && (form.bits != 0 || slab.shape(3) == shape.size),
            "a slab " + shape_text(slab) + " does not fit the layers");
  }
}

}  // namespace

Block::Block(BlockParameters parameters) : weights_(std::make_shared<const BlockWeights>(std::move(parameters))) {}

std::vector<mx::array> Block::enter(const mx::array& x, const mx::array& offset) const {
  require(x.ndim() == 3 && x.dtype() == mx::float32 && x.shape(2) == weights_->columns() && x.size() > 0,
          "x " + shape_text(x) + " must be float32 [rows, tokens, columns of the layer]");
  require(offset.dtype() == mx::int32 && (offset.size() == 1 || (offset.ndim() == 1 && offset.shape(0) == x.shape(0))),
          "offset must be int32, one or a row's each");
  const cpu::BlockShape& shape = weights_->block.shape;
  mx::Shape queries{x.shape(0), int(shape.heads), x.shape(1), int(shape.size)};
  mx::Shape keys{x.shape(0), int(shape.kv_heads), x.shape(1), int(shape.size)};
  auto primitive = std::make_shared<EnterBlock>(cpu_stream(), weights_);
  return mx::array::make_arrays({queries, keys, keys}, {mx::float32, mx::float32, mx::float32}, primitive, {x, offset});
}

mx::array Block::leave(const mx::array& x, const mx::array& attended) const {
  const cpu::BlockShape& shape = weights_->block.shape;
  require(x.ndim() == 3 && x.dtype() == mx::float32 && x.shape(2) == weights_->columns() && x.size() > 0,
          "x " + shape_text(x) + " must be float32 [rows, tokens, columns of the layer]");
  require(attended.ndim() == 4 && attended.dtype() == mx::float32 && attended.shape(0) == x.shape(0) &&
              attended.shape(1) == shape.heads && attended.shape(2) == x.shape(1) && attended.shape(3) == shape.size,
          "what was attended to " + shape_text(attended) + " does not fit x " + shape_text(x));
  auto primitive = std::make_shared<LeaveBlock>(cpu_stream(), weights_);
  return mx::array(x.shape(), mx::float32, primitive, {x, attended});
}

Stack::Stack(const std::vector<Block>& blocks, float scale) : scale_(scale) {
  require(!blocks.empty(), "a stack must have at least one layer");
  for (const Block& block : blocks) {
    const cpu::BlockShape &shape = block.weights_->block.shape, &first = blocks.front().weights_->block.shape;
    require(shape.heads == first.heads && shape.kv_heads == first.kv_heads && shape.size == first.size &&
                block.weights_->columns() == blocks.front().weights_->columns(),
            "the layers of a stack must be of one shape");
    require(shape.size % 16 == 0, "the size of a head must be a multiple of 16");
    blocks_.push_back(block.weights_);
  }
}

mx::array Stack::run(const mx::array& x, const std::vector<StackSlabs>& groups) const {
  const cpu::BlockShape& shape = blocks_.front()->block.shape;
  require(x.ndim() == 3 && x.dtype() == mx::float32 && x.shape(2) == blocks_.front()->columns() && x.size() > 0,
          "x " + shape_text(x) + " must be float32 [rows, tokens, columns of the layers]");
  std::vector<mx::array> inputs{x};
  SlabForm form;
  int rows = 0;
  for (const StackSlabs& group : groups) {
    require(group.lengths.dtype() == mx::int32 && group.lengths.ndim() == 1 && group.lengths.size() > 0,
            "lengths must be int32, one a row");
    require(group.keys.size() == blocks_.size() && group.values.size() == blocks_.size(),
            "there must be keys and values for every layer");
    if (rows == 0) form = form_of(group.keys.front(), shape.size);
    for (size_t layer = 0; layer < blocks_.size(); layer++)
      check_layer(group.keys[layer], group.values[layer], shape, form, group.keys.front(), group.lengths.shape(0),
                  x.shape(1));
    inputs.push_back(group.lengths);
    for (const auto* sides : {&group.keys, &group.values})
      for (const Side& side : *sides) inputs.insert(inputs.end(), side.begin(), side.end());
    rows += group.lengths.shape(0);
  }
  require(rows == x.shape(0), "there must be as many lengths as rows of x " + shape_text(x));
  auto primitive = std::make_shared<RunStack>(cpu_stream(), blocks_, scale_, form);
  return mx::array(x.shape(), mx::float32, primitive, std::move(inputs));
}

}  // namespace mlx_serving
