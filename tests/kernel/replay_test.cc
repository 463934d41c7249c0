// Runs the calls of a file that tests/kernel/replay.py wrote, whose first lines give its format. Results
// are near the expected ones, have the same bits for any number of threads and wherever tensors lie, and
// those of one label have the same bits.
#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "tensor.h"

namespace ms_ce_test {
namespace {

enum Kind : int64_t { kInput = 0, kOutput = 1, kChanged = 2 };

struct Allowed {
  double relative = 0.0, absolute = 0.0, steps = 0.0;
};

struct Recorded {
  std::string dtype;
  Shape shape, period;
  int64_t kind = kInput;
  std::vector<char> bytes;       // of one period of what is an input
  std::vector<double> expected;  // of one period of what is a result
  Allowed allowed;
  std::string label;
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
  template <class T>
  void ReadRun(std::vector<T>* values, size_t count) {
    values->resize(count);
    file_.read(reinterpret_cast<char*>(values->data()), static_cast<std::streamsize>(count * sizeof(T)));
  }

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
    const auto rank = static_cast<size_t>(Integer());
    ReadRun(&tensor->shape, rank);
    ReadRun(&tensor->period, rank);
    tensor->kind = Integer();
    const auto count = static_cast<size_t>(Count(tensor->period));
    if (tensor->kind != kOutput) ReadRun(&tensor->bytes, count * SizeOf(tensor->dtype));
    if (tensor->kind == kInput) return;
    ReadRun(&tensor->expected, count);
    file_.read(reinterpret_cast<char*>(&tensor->allowed), sizeof(tensor->allowed));
    tensor->label = Text();
  }

  std::ifstream file_;
};

// Calls work(index, index within the period) on every element.
template <class Work>
void ForElements(const Recorded& tensor, Work work) {
  Shape position(tensor.shape.size(), 0);
  const int64_t count = Count(tensor.shape);
  for (int64_t index = 0; index < count; ++index) {
    int64_t within = 0;
    for (size_t axis = 0; axis < position.size(); ++axis) {
      within = within * tensor.period[axis] + position[axis] % tensor.period[axis];
    }
    if (!work(index, within)) return;
    for (size_t axis = position.size(); axis-- > 0 && ++position[axis] == tensor.shape[axis];) {
      position[axis] = 0;
    }
  }
}

void Fill(const Recorded& recorded, Tensor* tensor) {
  const size_t size = SizeOf(recorded.dtype);
  if (recorded.shape == recorded.period) {
    if (!recorded.bytes.empty()) std::memcpy(tensor->data(), recorded.bytes.data(), recorded.bytes.size());
    return;
  }
  ForElements(recorded, [&](int64_t index, int64_t within) {
    std::memcpy(tensor->data() + static_cast<size_t>(index) * size,
                recorded.bytes.data() + static_cast<size_t>(within) * size, size);
    return true;
  });
}

// The distance of a dtype's neighbours at `value`.
double Step(const std::string& dtype, double value) {
  const int digits = dtype == "float16" ? 10 : 7, smallest = dtype == "float16" ? -14 : -126;
  return std::ldexp(1.0, std::max(value == 0.0 ? smallest : std::ilogb(value), smallest) - digits);
}

double AllowedAt(const Recorded& recorded, double expected) {
  const Allowed& allowed = recorded.allowed;
  const double error = allowed.relative * std::fabs(expected) + allowed.absolute;
  return allowed.steps == 0.0 ? error : error + allowed.steps * Step(recorded.dtype, expected);
}

bool Near(const Recorded& recorded, double actual, double expected) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::fabs(actual - expected) <= AllowedAt(recorded, expected);
}

int64_t Largest(const RecordedCall& call) {
  int64_t largest = 0;
  for (const Recorded& recorded : call.tensors) largest = std::max(largest, Count(recorded.shape));
  return largest;
}

std::vector<Tensor> RunRecorded(const RecordedCall& call, size_t past) {
  std::vector<Tensor> tensors;
  std::vector<Tensor*> pointers;
  for (const Recorded& recorded : call.tensors) {
    tensors.emplace_back(recorded.dtype, recorded.shape, past);
    if (recorded.kind != kOutput) Fill(recorded, &tensors.back());
  }
  for (Tensor& tensor : tensors) pointers.push_back(&tensor);
  const std::string error = Run(call.operation.c_str(), pointers);
  Check(error.empty(), "%s threw: %s", call.operation.c_str(), error.c_str());
  return tensors;
}

void CheckResults(const RecordedCall& call, long number, const std::vector<Tensor>& tensors) {
  for (size_t t = 0; t < tensors.size(); ++t) {
    const Recorded& recorded = call.tensors[t];
    if (recorded.kind == kInput) continue;
    ForElements(recorded, [&](int64_t index, int64_t within) {
      const double got = tensors[t].Get(index), expected = recorded.expected[static_cast<size_t>(within)];
      return Check(Near(recorded, got, expected),
                   "%s call %ld, %s, argument %d at %ld: %.9g, expected %.9g within %.3g", library.isa(),
                   number, call.operation.c_str(), static_cast<int>(t), static_cast<long>(index), got,
                   expected, AllowedAt(recorded, expected));
    });
  }
}

void CheckSame(const RecordedCall& call, long number, const std::vector<Tensor>& one,
               const std::vector<Tensor>& other) {
  for (size_t t = 0; t < one.size(); ++t) {
    Check(one[t].SameBytes(other[t]), "%s call %ld, %s: threads or places in memory change argument %d",
          library.isa(), number, call.operation.c_str(), static_cast<int>(t));
  }
}

// Results by their labels.
class Labelled {
 public:
  void Expect(const RecordedCall& call, long number, const std::vector<Tensor>& tensors) {
    for (size_t t = 0; t < tensors.size(); ++t) {
      const std::string& label = call.tensors[t].label;
      if (label.empty()) continue;
      const auto [first, is_new] = results_.emplace(label, tensors[t]);
      Check(is_new || first->second.SameBytes(tensors[t]), "%s call %ld, %s: other bits for \"%s\"",
            library.isa(), number, call.operation.c_str(), label.c_str());
    }
  }

 private:
  std::map<std::string, Tensor> results_;
};

}  // namespace

void TestReplay(const char* path, int64_t at_most) {
  Reader reader(path);
  if (!Check(reader.opened(), "%s cannot be read", path)) return;
  std::set<std::string> seen;
  Labelled labelled;
  RecordedCall call;
  for (long number = 0; reader.Next(&call); ++number) {
    if (Largest(call) > at_most) continue;
    seen.insert(call.operation);
    library.set_threads(1);
    const std::vector<Tensor> one = RunRecorded(call, 0);
    CheckResults(call, number, one);
    labelled.Expect(call, number, one);
    library.set_threads(static_cast<int>(2 + number % 7));
    CheckSame(call, number, one, RunRecorded(call, static_cast<size_t>(1 + number % 15)));
  }
  library.set_threads(0);
  for (const ms_ce::Operation& operation : ms_ce::kOperations) {
    Check(seen.count(operation.name) == 1, "no call of %s is replayed", operation.name);
  }
}

}  // namespace ms_ce_test
