// A CUDA runtime of two GPUs that do nothing: memory is reserved and never touched by kernels, which
// are counted.  What is not here gives 0 (build.py).
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#undef cudaGetDeviceProperties

unsigned long stub_kernels = 0, stub_copies = 0;  // of torch
static __thread int current = 0;
static __thread struct { dim3 grid, block; size_t shared; void *stream; } configuration;
static long handles = 4096;
static cudaStream_t capturing = (cudaStream_t)-1;

cudaError_t cudaGetDeviceCount(int *n) { *n = 2; return 0; }
cudaError_t cudaGetDevice(int *device) { *device = current; return 0; }
cudaError_t cudaSetDevice(int device) { current = device; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H200 (stub)");
  p->major = 9;
  p->totalGlobalMem = 140ull << 30;
  p->warpSize = 32;
  p->regsPerBlock = 65536;
  p->multiProcessorCount = 132;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 6144;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  return cuDeviceGetAttribute(value, attribute, device);  // numbered alike
}
cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { strncpy(s, "0000:01:00.0", n); return 0; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; return 0; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
const char *cudaGetErrorString(cudaError_t e) { return "stub"; }
const char *cudaGetErrorName(cudaError_t e) { return "stub"; }

cudaError_t cudaMalloc(void **p, size_t n) {
  size_t page = 2 << 20;
  *p = mmap(0, (n + page) & ~(page - 1), PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *p == MAP_FAILED ? cudaErrorMemoryAllocation : 0;
}
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) {
  *p = aligned_alloc(4096, (n + 4095) & ~4095ull);
  return 0;
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *total = 140ull << 30; *free = 138ull << 30; return 0; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
  stub_copies++;
  if (n <= 65536 && kind != cudaMemcpyDeviceToDevice) memcpy(to, from, n);
  return 0;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, n, kind, 0);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  a->device = current;
  a->devicePointer = (void *)p;
  return 0;
}

cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = (cudaStream_t)(handles += 64); return 0; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int p) { return cudaStreamCreate(s); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = (cudaEvent_t)(handles += 64); return 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return cudaEventCreate(e); }
cudaError_t cudaEventElapsedTime(float *t, cudaEvent_t a, cudaEvent_t b) { *t = 1.0f; return 0; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) { capturing = s; return 0; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = s == capturing;
  return 0;
}
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *n) {
  if (id) *id = 1;
  if (graph) *graph = (cudaGraph_t)4096;
  return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
  capturing = (cudaStream_t)-1;
  *g = (cudaGraph_t)(handles += 64);
  return 0;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) { *n = 1; return 0; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags) {
  *e = (cudaGraphExec_t)(handles += 64);
  return 0;
}

static int nothing() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **f, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
  *f = dlsym(dlopen("libcuda.so.1", RTLD_LAZY), name);
  if (!*f) *f = (void *)nothing;
  if (result) *result = 0;
  return 0;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = 90;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int block, size_t shared) {
  *n = 4;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int block, size_t shared, unsigned flags) {
  *n = 4;
  return 0;
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **p, size_t shared, cudaStream_t s) {
  stub_kernels++;
  return 0;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **p) {
  stub_kernels++;
  return 0;
}

// what nvcc's code calls
static void *binaries[4];
void **__cudaRegisterFatBinary(void *f) { return binaries; }
void __cudaRegisterFatBinaryEnd(void **f) {}
void __cudaUnregisterFatBinary(void **f) {}
void __cudaRegisterFunction() {}
void __cudaRegisterVar() {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  configuration.grid = grid;
  configuration.block = block;
  configuration.shared = shared;
  configuration.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *(void **)stream = configuration.stream;
  return 0;
}
cudaError_t __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return 0; }
cudaError_t __cudaLaunchKernel(void *k, dim3 g, dim3 b, void **p, size_t shared, cudaStream_t s) {
  stub_kernels++;
  return 0;
}
