// A cuBLAS that multiplies nothing.
int cublasCreate_v2(void **handle) { *handle = (void *)4096; return 0; }
int cublasDestroy_v2(void *handle) { return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }
