// The operators as MindSpore calls them on CPU, answered by the kernels of the host model: the shape
// inference of custom_aicore/infer with a kernel beside each inference. MindSpore takes both from one
// library there.
#include INFERENCE

#include <dlfcn.h>

#include <mutex>
#include <stdexcept>
#include <string>

#include "../../custom_aicore/host_model/launch.h"
#include "../../custom_aicore/op_kernel/ms_ce_tiling.h"

namespace mindspore {

// The attributes of a call, in the order of MindSpore's virtual functions.
class AotExtra {
 public:
  virtual ~AotExtra();
  virtual bool HasAttr(std::string name) = 0;
  virtual bool GetAttrBool(std::string name) = 0;
  virtual int64_t GetAttrInt(std::string name) = 0;
  virtual float GetAttrFloat(std::string name) = 0;
};

}  // namespace mindspore

namespace {

int64_t SizeOf(const std::string& dtype) {
  if (dtype == "float16" || dtype == "bfloat16") return 2;
  if (dtype == "float32" || dtype == "int32") return 4;
  if (dtype == "int64") return 8;
  throw std::runtime_error("an operator gets " + dtype);
}

// The host model's library for a dtype of logits.
void* Library(const std::string& dtype) {
  const std::string path = dtype == "float32" ? FLOAT32 : (dtype == "float16" ? FLOAT16 : BFLOAT16);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  return library;
}

template <typename Function>
Function* Symbol(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

MsCeProblem Describe(int kind, int logits, const int64_t* shape, const char** dtypes,
                     mindspore::AotExtra& given) {
  MsCeProblem p{};
  const auto integer = [&](const char* name, int64_t otherwise) {
    return given.HasAttr(name) ? given.GetAttrInt(name) : otherwise;
  };
  p.rows = shape[0];
  p.cols = shape[1];
  p.kind = kind;
  p.ubBytes = UB_BYTES;
  p.cores = CORES;
  p.logitsBytes = static_cast<int32_t>(SizeOf(dtypes[logits]));
  p.targetBytes = static_cast<int32_t>(SizeOf(dtypes[logits + 1]));
  p.reduction = static_cast<int32_t>(integer("reduction", 0));
  p.ignoreIndex = integer("ignore_index", -100);
  p.classOffset = integer("class_offset", 0);
  p.totalClasses = integer("total_classes", 0);
  if (p.totalClasses == 0) p.totalClasses = p.cols;
  p.hasWeight = given.GetAttrBool("has_weight");
  if (given.HasAttr("label_smoothing")) p.labelSmoothing = given.GetAttrFloat("label_smoothing");
  if (given.HasAttr("z_loss")) p.zLoss = given.GetAttrFloat("z_loss");
  return p;
}

int Call(const char* kernel, int kind, int inputs, int count, void** params, int* ndims, int64_t** shapes,
         const char** dtypes, void* extra) {
  static std::mutex oneAtATime;
  const std::lock_guard<std::mutex> lock(oneAtATime);
  const int logits = ms_ce::WritesGradient(kind) && kind != MS_CE_FORWARD_GRAD;
  void* library = Library(dtypes[logits]);
  const MsCeProblem problem =
      Describe(kind, logits, shapes[logits], dtypes, *static_cast<mindspore::AotExtra*>(extra));
  MsCeTiling tiling{};
  Symbol<void(const MsCeProblem*, MsCeTiling*)>(library, "host_model_tiling")(&problem, &tiling);
  std::vector<uint8_t> workspace(tiling.workspaceBytes);
  std::vector<uint8_t*> bases;
  std::vector<int64_t> bytes, counts(4 * (count + 1));
  std::vector<int32_t> writable;
  std::vector<const char*> names(count + 1, kernel);
  for (int i = 0; i < count; ++i) {
    int64_t size = SizeOf(dtypes[i]);
    for (int axis = 0; axis < ndims[i]; ++axis) size *= shapes[i][axis];
    bases.push_back(static_cast<uint8_t*>(params[i]));
    bytes.push_back(size);
    writable.push_back(i >= inputs);
  }
  bases.push_back(workspace.data());
  bytes.push_back(tiling.workspaceBytes);
  writable.push_back(1);
  auto request = std::make_unique<host_model::LaunchRequest>();
  request->blocks = tiling.usedCores;
  request->unifiedBufferBytes = static_cast<uint32_t>(problem.ubBytes);
  request->buffers = count + 1;
  request->bases = bases.data();
  request->bytes = bytes.data();
  request->writable = writable.data();
  request->names = names.data();
  request->tiling = reinterpret_cast<uint8_t*>(&tiling);
  request->bytesRead = &counts[0];
  request->bytesWritten = &counts[count + 1];
  request->copies = &counts[2 * (count + 1)];
  request->smallestCopy = &counts[3 * (count + 1)];
  const auto launch = Symbol<int(const char*, host_model::LaunchRequest*)>(library, "host_model_launch");
  if (launch(kernel, request.get())) throw std::runtime_error(request->message);
  return 0;
}

}  // namespace

#define OPERATOR(NAME, KERNEL, KIND, INPUTS, TENSORS)                                                     \
  extern "C" int NAME(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, \
                      void* extra) {                                                                      \
    if (count != TENSORS) throw std::runtime_error(#NAME " gets " + std::to_string(count) + " tensors");  \
    return Call(#KERNEL, KIND, INPUTS, count, params, ndims, shapes, dtypes, extra);                      \
  }
OPERATORS
