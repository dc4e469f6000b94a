/* The cblas products that MLX's CPU back end calls, under the names it calls them by.
 *
 * MLX's Linux wheel links the reference BLAS. Loaded with RTLD_GLOBAL before MLX, this library stands ahead of it in
 * the symbol scope and passes each product on to the BLAS that `mlx_serving_blas_bind` was given. It links nothing, so
 * it builds without that BLAS and survives its upgrades. Arguments are those of cblas.h: enums are int, sizes are
 * 32-bit int, complex scalars are pointers.
 */
#include <stdatomic.h>

#define EXPORT __attribute__((visibility("default")))

typedef void (*sgemm_function)(int, int, int, int, int, int, float, const float *, int, const float *, int, float,
                               float *, int);
typedef void (*dgemm_function)(int, int, int, int, int, int, double, const double *, int, const double *, int, double,
                               double *, int);
typedef void (*cgemm_function)(int, int, int, int, int, int, const void *, const void *, int, const void *, int,
                               const void *, void *, int);

static sgemm_function bound_sgemm;
static dgemm_function bound_dgemm;
static cgemm_function bound_cgemm;
static atomic_ullong products;

/* Must be called once before the first product. */
EXPORT void mlx_serving_blas_bind(void *sgemm, void *dgemm, void *cgemm) {
  bound_sgemm = (sgemm_function)sgemm;
  bound_dgemm = (dgemm_function)dgemm;
  bound_cgemm = (cgemm_function)cgemm;
}

/* Products passed on since the library was loaded: the proof that MLX's calls arrive here. */
EXPORT unsigned long long mlx_serving_blas_products(void) {
  return atomic_load_explicit(&products, memory_order_relaxed);
}

static void count(void) { atomic_fetch_add_explicit(&products, 1, memory_order_relaxed); }

EXPORT void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                        const float *b, int ldb, float beta, float *c, int ldc) {
  count();
  bound_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_dgemm(int order, int trans_a, int trans_b, int m, int n, int k, double alpha, const double *a,
                        int lda, const double *b, int ldb, double beta, double *c, int ldc) {
  count();
  bound_dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_cgemm(int order, int trans_a, int trans_b, int m, int n, int k, const void *alpha, const void *a,
                        int lda, const void *b, int ldb, const void *beta, void *c, int ldc) {
  count();
  bound_cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
