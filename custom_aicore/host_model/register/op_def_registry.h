// Stand-in for the toolkit's header of the same name: enough of the operator registry for op_host/ to compile, as C++11, and
// run on the host, so that tests read the definitions themselves instead of their text.
#ifndef MS_CE_HOST_MODEL_OP_DEF_REGISTRY_H
#define MS_CE_HOST_MODEL_OP_DEF_REGISTRY_H

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace ge {

using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 0xFFFFFFFF;
enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_INT32 = 3, DT_INT64 = 9, DT_BOOL = 12, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };

}  // namespace ge

namespace gert {

class Shape {
public:
    size_t GetDimNum() const { return dims_.size(); }
    int64_t GetDim(size_t axis) const { return dims_.at(axis); }
    void SetDimNum(size_t count) { dims_.resize(count); }
    void SetDim(size_t axis, int64_t value) { dims_.at(axis) = value; }
    int64_t GetShapeSize() const {
        int64_t size = 1;
        for (int64_t d : dims_) size *= d;
        return size;
    }

private:
    std::vector<int64_t> dims_;
};

struct StorageShape {
    Shape shape;
    const Shape& GetStorageShape() const { return shape; }
};

struct CompileTimeTensorDesc {
    ge::DataType type;
    ge::DataType GetDataType() const { return type; }
};

// Each attribute in the type of its definition only: who reads it as another one gets nothing.
class RuntimeAttrs {
public:
    template <typename T>
    const T* GetAttrPointer(size_t index) const {
        return Pointer(values.at(index), static_cast<const T*>(nullptr));
    }
    void Add(const std::string& type, double value) {
        values.push_back({type, static_cast<int64_t>(value), static_cast<float>(value), value != 0});
    }

private:
    struct Value {
        std::string type;
        int64_t asInt;
        float asFloat;
        bool asBool;
    };
    static const int64_t* Pointer(const Value& v, const int64_t*) { return v.type == "int" ? &v.asInt : nullptr; }
    static const float* Pointer(const Value& v, const float*) { return v.type == "float" ? &v.asFloat : nullptr; }
    static const bool* Pointer(const Value& v, const bool*) { return v.type == "bool" ? &v.asBool : nullptr; }
    std::vector<Value> values;
};

// One context serves shapes, dtypes and tiling.
class Context {
public:
    std::vector<StorageShape> inputs;
    std::vector<CompileTimeTensorDesc> descriptions;
    std::vector<Shape> outputs;
    std::vector<ge::DataType> outputTypes;
    RuntimeAttrs attributes;
    std::vector<uint8_t> tilingBytes;
    size_t workspace = 0;
    uint32_t blocks = 0, scheduleMode = 0, cores = 0;
    uint64_t unifiedBuffer = 0;

    const RuntimeAttrs* GetAttrs() const { return &attributes; }
    const CompileTimeTensorDesc* GetInputDesc(size_t index) const { return &descriptions.at(index); }
    ge::DataType GetInputDataType(size_t index) const { return descriptions.at(index).type; }
    void SetOutputDataType(size_t index, ge::DataType type) { outputTypes.at(index) = type; }
    Shape* GetOutputShape(size_t index) { return &outputs.at(index); }
    template <typename T>
    T* GetTilingData() {
        tilingBytes.assign(sizeof(T), 0);
        return reinterpret_cast<T*>(tilingBytes.data());
    }
    size_t* GetWorkspaceSizes(size_t) { return &workspace; }
    void SetBlockDim(uint32_t count) { blocks = count; }
    ge::graphStatus SetScheduleMode(uint32_t mode) {
        scheduleMode = mode;
        return ge::GRAPH_SUCCESS;
    }
    const Context* GetPlatformInfo() const { return this; }
};

class TilingContext : public Context {
public:
    const StorageShape* GetInputShape(size_t index) const { return &inputs.at(index); }
};
class InferShapeContext : public Context {
public:
    const Shape* GetInputShape(size_t index) const { return &inputs.at(index).shape; }
};
class InferDataTypeContext : public Context {};

}  // namespace gert

namespace ops {

enum Option { IGNORE = 0, OPTIONAL = 1, REQUIRED = 2, DYNAMIC = 3 };

struct OpParamDef {
    std::string name;
    Option option = IGNORE;
    std::vector<ge::DataType> types;
    std::vector<ge::Format> formats;
    OpParamDef& ParamType(Option value) {
        option = value;
        return *this;
    }
    OpParamDef& DataType(std::vector<ge::DataType> value) {
        types = std::move(value);
        return *this;
    }
    OpParamDef& Format(std::vector<ge::Format> value) {
        formats = std::move(value);
        return *this;
    }
};

struct OpAttrDef {
    std::string name, type;
    Option option = IGNORE;
    OpAttrDef& AttrType(Option value) {
        option = value;
        return *this;
    }
    OpAttrDef& Int() {
        type = "int";
        return *this;
    }
    OpAttrDef& Float() {
        type = "float";
        return *this;
    }
    OpAttrDef& Bool() {
        type = "bool";
        return *this;
    }
};

struct OpAICoreDef {
    std::function<ge::graphStatus(gert::TilingContext*)> tiling;
    std::vector<std::string> configs;
    OpAICoreDef& SetTiling(ge::graphStatus (*function)(gert::TilingContext*)) {
        tiling = function;
        return *this;
    }
    OpAICoreDef& AddConfig(const char* soc) {
        configs.push_back(soc);
        return *this;
    }
};

template <typename T>
T& Append(std::deque<T>& list, const char* name) {
    list.emplace_back();
    list.back().name = name;
    return list.back();
}

class OpDef {
public:
    explicit OpDef(const char* type) : name(type) {}
    OpParamDef& Input(const char* n) { return Append(inputs, n); }
    OpParamDef& Output(const char* n) { return Append(outputs, n); }
    OpAttrDef& Attr(const char* n) { return Append(attributes, n); }
    OpDef& SetInferShape(ge::graphStatus (*function)(gert::InferShapeContext*)) {
        inferShape = function;
        return *this;
    }
    OpDef& SetInferDataType(ge::graphStatus (*function)(gert::InferDataTypeContext*)) {
        inferType = function;
        return *this;
    }
    OpAICoreDef& AICore() { return core; }

    std::string name;
    std::deque<OpParamDef> inputs, outputs;
    std::deque<OpAttrDef> attributes;
    OpAICoreDef core;
    std::function<ge::graphStatus(gert::InferShapeContext*)> inferShape;
    std::function<ge::graphStatus(gert::InferDataTypeContext*)> inferType;
};

inline std::vector<OpDef>& Registry() {
    static std::vector<OpDef> registry;
    return registry;
}

}  // namespace ops

#define OP_ADD(TYPE) static const bool g_added##TYPE = (ops::Registry().push_back(TYPE(#TYPE)), true)

#endif
