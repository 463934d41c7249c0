// The table of operations as JSON.
#include <string>

#include "interface/operations.h"
#include "linear/linear_loss.h"

namespace ms_ce {
namespace {

struct TypeText {
  Type type;
  const char* dtypes;  // letters stand for the dtype that their type has in the call
};

constexpr TypeText kTypes[] = {
    {Type::kFloat, R"(["float16","bfloat16","float32","float64"])"},
    {Type::kTarget, R"(["int32","int64","uint8","F","float32"])"},
    {Type::kClasses, R"(["int32","int64","uint8"])"},
    {Type::kProbabilities, R"(["F","float32"])"},
    {Type::kWeight, R"(["F","float32"])"},
    {Type::kRowWeight, R"(["F","float64"])"},
    {Type::kUpstream, R"(["F"])"},
    {Type::kWideUpstream, R"(["float64"])"},
    {Type::kInt64, R"(["int64"])"},
    {Type::kInt32, R"(["int32"])"},
    {Type::kDouble, R"(["float64"])"},
    {Type::kTeacher, R"(["float16","bfloat16","float32","float64"])"},
};

// In the order of Extent and of Form.
constexpr const char* kExtentNames[] = {
    "scalar",         "options",        "plan",         "logits", "rows",          "loss",
    "target",         "weight",         "partial",      "input",  "linear_weight", "linear_bias",
    "teacher_hidden", "teacher_weight", "teacher_bias", "top_k",  "text"};
constexpr const char* kFormNames[] = {"either", "scalar", "per_row"};
static_assert(std::size(kExtentNames) == kExtents);

std::string Quoted(const std::string& text) { return "\"" + text + "\""; }

// `text(item)` of each item, as the elements of an array.
template <class Items, class Text>
std::string List(const Items& items, Text text) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ",") + text(item);
  return "[" + out + "]";
}

const char* SlotType(const SlotPlace& place) {
  if (place.reduction != nullptr) return "reduction";
  if (place.real != nullptr) return "float64";
  return place.flag != nullptr || place.linear_flag != nullptr ? "bool" : "int64";
}

std::string SlotText(const Slot& slot) {
  return "{\"name\":" + Quoted(slot.name) + ",\"type\":" + Quoted(SlotType(slot.place)) + "}";
}

std::string ArgumentText(const Argument* argument) {
  return "{\"name\":" + Quoted(argument->name) +
         ",\"type\":" + Quoted(std::string(1, static_cast<char>(argument->type))) +
         ",\"extent\":" + Quoted(kExtentNames[static_cast<size_t>(argument->extent)]) + "}";
}

std::string OperationText(const Operation& operation) {
  return "{\"name\":" + Quoted(operation.name) +
         ",\"form\":" + Quoted(kFormNames[static_cast<size_t>(operation.form)]) +
         ",\"inputs\":" + List(operation.inputs, ArgumentText) +
         ",\"outputs\":" + List(operation.outputs, ArgumentText) + "}";
}

std::string TypesText() {
  std::string out;
  for (const TypeText& type : kTypes) {
    out +=
        (out.empty() ? "\"" : ",\"") + std::string(1, static_cast<char>(type.type)) + "\":" + type.dtypes;
  }
  return "{" + out + "}";
}

std::string DefaultChunkText() {
  return "{\"smallest\":" + std::to_string(kSmallestDefaultChunk) +
         ",\"largest\":" + std::to_string(kLargestDefaultChunk) +
         ",\"share\":" + std::to_string(kDefaultShare) + ",\"beside\":" + std::to_string(kBesideChunk) +
         ",\"hidden_copies\":" + std::to_string(kHiddenCopies) + "}";
}

}  // namespace

const char* Describe() {
  static const std::string text =
      "{\"version\":" + Quoted(MS_CE_VERSION) + ",\"types\":" + TypesText() +
      ",\"reductions\":" + List(kReductions, Quoted) + ",\"options\":" + List(kOptionSlots, SlotText) +
      ",\"plan\":" + List(kPlanSlots, SlotText) + ",\"default_chunk\":" + DefaultChunkText() +
      ",\"operations\":" + List(kOperations, OperationText) + "}";
  return text.c_str();
}

}  // namespace ms_ce
