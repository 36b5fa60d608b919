// A cuBLASLt that multiplies nothing.
int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int wanted,
    void *results, int *found) {
  *found = 1;
  return 0;
}
int cublasLtMatmulDescCreate(void **made, int compute, int scale) { *made = (void *)4096; return 0; }
int cublasLtMatrixLayoutCreate() { return 0; }
int cublasLtMatmulPreferenceCreate(void **made) { *made = (void *)4096; return 0; }
