// An operation's exception reaches its caller: through MindSpore, which calls it so, a user reads the text.
#include <exception>
#include <stdexcept>

#include "tensor.h"

namespace ms_ce_test {

namespace {

std::string ErrorOfForward(CallArguments* arguments) {
  try {
    library.forward(arguments->count(), arguments->params.data(), arguments->ndims.data(),
                    arguments->shapes.data(), arguments->dtypes.data(), nullptr, nullptr);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

bool TestRefused() {
  Tensor logits("float32", {1, 2}), target("int64", {1}), weight("float32", {}), row_weight("float64", {}),
      options = Options{}.Pack(), loss("float32", {}), total_weight("float64", {}), lse("float64", {1});
  CallArguments arguments({&logits, &target, &weight, &row_weight, &options, &loss, &total_weight, &lse});
  const std::string text = ErrorOfForward(&arguments), list = library.isa_list();
  Check(list.empty(), "this processor runs %s", list.c_str());
  Check(library.isa() == nullptr, "there is an instruction set");
  return Check(text.find("ms_ce: this CPU must run at least x86-64-v2") == 0, "a call was told \"%s\"",
               text.c_str()) &&
         tally.failures == 0;
}

void TestError() {
  Tensor logits("float32", {3, 7}), target("int64", {3}), weight("float32", {7}),
      options = Options{}.Pack();
  Tensor row_weight("float64", {}), loss("float32", {}), total_weight("float64", {}), lse("float64", {3});
  for (int64_t i = 0; i < logits.size(); ++i) logits.Set(i, 0.5);
  for (int64_t i = 0; i < target.size(); ++i) target.Set(i, i == 2 ? 9 : 1);
  CallArguments arguments({&logits, &target, &weight, &row_weight, &options, &loss, &total_weight, &lse});
  const std::string text = ErrorOfForward(&arguments);
  const char* expected = "ms_ce: target 9 at position (2,) is outside [0, 7)";
  Check(text.find(expected) == 0, "a bad label was told as \"%s\"", text.c_str());
  // A library with a C++ runtime of its own would have counted the exception there, and not here.
  Check(std::uncaught_exceptions() == 0, "%d exceptions are in flight after one was caught",
        std::uncaught_exceptions());
}

}  // namespace ms_ce_test
