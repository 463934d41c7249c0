// An operation's exception reaches its caller: through MindSpore, which calls it so, a user reads the text.
#include <exception>
#include <stdexcept>

#include "tensor.h"

namespace ms_ce_test {

void TestError() {
  Tensor logits("float32", {3, 7}), target("int64", {3}), weight("float32", {7}),
      options = Options{}.Pack();
  Tensor row_weight("float64", {}), loss("float32", {}), total_weight("float64", {}), lse("float64", {3});
  for (int64_t i = 0; i < logits.size(); ++i) logits.Set(i, 0.5);
  for (int64_t i = 0; i < target.size(); ++i) target.Set(i, i == 2 ? 9 : 1);
  CallArguments arguments({&logits, &target, &weight, &row_weight, &options, &loss, &total_weight, &lse});
  std::string text;
  try {
    library.forward(arguments.count(), arguments.params.data(), arguments.ndims.data(),
                    arguments.shapes.data(), arguments.dtypes.data(), nullptr, nullptr);
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  const char* expected = "ms_ce: target 9 at position (2,) is outside [0, 7)";
  Check(text.find(expected) == 0, "a bad label was told as \"%s\"", text.c_str());
  // A library with a C++ runtime of its own would have counted the exception there, and not here.
  Check(std::uncaught_exceptions() == 0, "%d exceptions are in flight after one was caught",
        std::uncaught_exceptions());
}

}  // namespace ms_ce_test
