// Between storage types and float.

template <class T>
void widen_of(const T* source, float* target, long count) {
  long whole = count / W * W;
  for (long i = 0; i < whole; i += W) store(target + i, load(source + i));
  for (long i = whole; i < count; i++) target[i] = to_float(source[i]);
}

template <class T>
void narrow_of(const float* source, T* target, long count) {
  long whole = count / W * W;
  for (long i = 0; i < whole; i += W) store(target + i, load(source + i));
  for (long i = whole; i < count; i++) target[i] = from_float<T>(source[i]);
}

void widen(const void* source, Type type, float* target, long count) {
  if (type == Type::f32) widen_of(static_cast<const float*>(source), target, count);
  else if (type == Type::f16) widen_of(static_cast<const half_t*>(source), target, count);
  else widen_of(static_cast<const bfloat_t*>(source), target, count);
}

void narrow(const float* source, void* target, Type type, long count) {
  if (type == Type::f32) narrow_of(source, static_cast<float*>(target), count);
  else if (type == Type::f16) narrow_of(source, static_cast<half_t*>(target), count);
  else narrow_of(source, static_cast<bfloat_t*>(target), count);
}
