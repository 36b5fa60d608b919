// A CUDA driver of two GPUs that do nothing, for Triton: launches are logged with their parameters.
// What is not here gives 0 (build.py).
#include <cuda.h>
#include <string.h>
#undef cuDevicePrimaryCtxRetain

#define FUNCTIONS 4096
#define PARAMETERS 64
#define LOGGED 4096
#define BYTES 2048

typedef struct {
  CUfunction function;
  unsigned grid, block, shared, attributes;
  CUstream stream;
  unsigned bytes;  // of parameters, if the function's layout is known
  unsigned char parameters[BYTES];
} Launch;

unsigned long stub_launches = 0, stub_tensor_maps = 0, stub_pointer_queries = 0;
Launch stub_log[LOGGED];
unsigned stub_layouts[FUNCTIONS][PARAMETERS];  // bytes of each parameter of the function, then 0
static long functions = 0, modules = 0;
static __thread CUcontext current = (CUcontext)4096;

CUresult cuInit(unsigned flags) { return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return 0; }
CUresult cuDeviceGetCount(int *n) { *n = 2; return 0; }
CUresult cuDeviceGet(CUdevice *device, int i) { *device = i; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice device) { *c = (CUcontext)4096; return 0; }
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return 0;
}
CUresult cuCtxGetCurrent(CUcontext *c) { *c = current; return 0; }
CUresult cuCtxSetCurrent(CUcontext c) { current = c; return 0; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return 0; }
CUresult cuGetErrorString(CUresult e, const char **s) { *s = "stub"; return 0; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  static const int h200[][2] = {{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535},
    {7, 65535}, {8, 49152}, {10, 32}, {12, 65536}, {16, 132}, {39, 2048}, {75, 9}, {81, 233472},
    {97, 232448}, {-1, 0}};
  int i = 0;
  while (h200[i][0] >= 0 && h200[i][0] != (int)attribute) i++;
  *value = h200[i][1];
  return 0;
}
CUresult cuModuleLoadData(CUmodule *m, const void *image) { *m = (CUmodule)(modules += 64); return 0; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
  *f = (CUfunction)(++functions % FUNCTIONS);
  return 0;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute a, CUfunction f) {
  *value = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return 0;
}
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { *n = 1; return 0; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute a, CUdeviceptr p) {
  stub_pointer_queries++;
  *(CUdeviceptr *)value = p;
  return 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
  Launch *l = &stub_log[stub_launches++ % LOGGED];
  l->function = f;
  l->grid = c->gridDimX;
  l->block = c->blockDimX;
  l->shared = c->sharedMemBytes;
  l->attributes = c->numAttrs;
  l->stream = c->hStream;
  l->bytes = 0;
  const unsigned *layout = stub_layouts[(long)f];
  for (int i = 0; i < PARAMETERS && layout[i] && l->bytes + layout[i] <= BYTES; i++) {
    memcpy(l->parameters + l->bytes, parameters[i], layout[i]);
    l->bytes += layout[i];
  }
  return 0;
}
// a map holds all that it is made of, so that two are the same if and only if these are
CUresult cuTensorMapEncodeTiled(
    CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address, const cuuint64_t *sizes,
    const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps, CUtensorMapInterleave i,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
  unsigned long long *word = (unsigned long long *)map;
  stub_tensor_maps++;
  memset(map, 0, sizeof *map);
  *word++ = (unsigned long long)address;
  *word++ = (unsigned long long)type << 32 | rank << 16 | swizzle << 8 | l2 << 4 | fill;
  for (unsigned k = 0; k < rank; k++) {
    *word++ = sizes[k] << 32 | box[k];
    if (k + 1 < rank) *word++ = strides[k];
  }
  return 0;
}
