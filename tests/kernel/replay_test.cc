// Runs the calls of a file that tests/kernel/replay.py wrote, whose first lines give its format: aligned or
// not, and bitwise the same for any number of threads.
#include <fstream>
#include <set>

#include "tensor.h"

namespace ms_ce_test {
namespace {

enum Kind : int64_t { kInput = 0, kOutput = 1, kChanged = 2 };

struct Recorded {
  std::string dtype;
  Shape shape;
  int64_t kind = kInput;
  std::vector<char> bytes;                // of what is an input
  std::vector<double> expected, allowed;  // of what is a result
};

struct RecordedCall {
  std::string operation;
  std::vector<Recorded> tensors;
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  bool opened() const { return file_.is_open(); }

  bool Next(RecordedCall* call) {
    if (file_.peek() == std::ifstream::traits_type::eof()) return false;
    call->operation = Text();
    call->tensors.assign(static_cast<size_t>(Integer()), {});
    for (Recorded& tensor : call->tensors) Read(&tensor);
    return Check(file_.good(), "the file ends within a call of %s", call->operation.c_str());
  }

 private:
  int64_t Integer() {
    int64_t value = 0;
    file_.read(reinterpret_cast<char*>(&value), sizeof(value));
    return value;
  }

  std::string Text() {
    std::string text(static_cast<size_t>(Integer()), ' ');
    file_.read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  }

  void Read(Recorded* tensor) {
    tensor->dtype = Text();
    tensor->shape.resize(static_cast<size_t>(Integer()));
    for (int64_t& size : tensor->shape) size = Integer();
    tensor->kind = Integer();
    const auto count = static_cast<size_t>(Count(tensor->shape));
    if (tensor->kind != kOutput) {
      tensor->bytes.resize(count * SizeOf(tensor->dtype));
      file_.read(tensor->bytes.data(), static_cast<std::streamsize>(tensor->bytes.size()));
    }
    if (tensor->kind == kInput) return;
    for (auto* values : {&tensor->expected, &tensor->allowed}) {
      values->resize(count);
      file_.read(reinterpret_cast<char*>(values->data()),
                 static_cast<std::streamsize>(count * sizeof(double)));
    }
  }

  std::ifstream file_;
};

bool Near(double actual, double expected, double allowed) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::fabs(actual - expected) <= allowed;
}

std::vector<Tensor> RunRecorded(const RecordedCall& call, size_t past) {
  std::vector<Tensor> tensors;
  std::vector<Tensor*> pointers;
  for (const Recorded& recorded : call.tensors) {
    tensors.emplace_back(recorded.dtype, recorded.shape, past);
    if (!recorded.bytes.empty())
      std::memcpy(tensors.back().data(), recorded.bytes.data(), recorded.bytes.size());
  }
  for (Tensor& tensor : tensors) pointers.push_back(&tensor);
  const std::string error = Run(call.operation.c_str(), pointers);
  Check(error.empty(), "%s threw: %s", call.operation.c_str(), error.c_str());
  return tensors;
}

void CheckResults(const RecordedCall& call, int64_t number, const std::vector<Tensor>& tensors) {
  for (size_t t = 0; t < tensors.size(); ++t) {
    const Recorded& recorded = call.tensors[t];
    for (size_t i = 0; i < recorded.expected.size(); ++i) {
      const double got = tensors[t].Get(static_cast<int64_t>(i));
      if (!Check(Near(got, recorded.expected[i], recorded.allowed[i]),
                 "%s call %ld, %s, argument %d at %ld: %.9g, expected %.9g within %.3g", MsCeIsa(),
                 static_cast<long>(number), call.operation.c_str(), static_cast<int>(t),
                 static_cast<long>(i), got, recorded.expected[i], recorded.allowed[i])) {
        break;
      }
    }
  }
}

void CheckSame(const RecordedCall& call, const std::vector<Tensor>& one, const std::vector<Tensor>& other) {
  for (size_t t = 0; t < one.size(); ++t) {
    Check(one[t].SameBytes(other[t]), "%s: threads or places in memory change argument %d",
          call.operation.c_str(), static_cast<int>(t));
  }
}

}  // namespace

void TestReplay(const char* path) {
  Reader reader(path);
  if (!Check(reader.opened(), "%s cannot be read", path)) return;
  std::set<std::string> seen;
  RecordedCall call;
  for (int64_t number = 0; reader.Next(&call); ++number) {
    seen.insert(call.operation);
    MsCeSetThreads(1);
    const std::vector<Tensor> one = RunRecorded(call, 0);
    CheckResults(call, number, one);
    MsCeSetThreads(3);
    CheckSame(call, one, RunRecorded(call, 1));
  }
  MsCeSetThreads(0);
  for (const ms_ce::Operation& operation : ms_ce::kOperations) {
    Check(seen.count(operation.name) == 1, "no call of %s is replayed", operation.name);
  }
}

}  // namespace ms_ce_test
