// The operator definitions of op_host/, behind a C entry for tests: their description, and their inference and tiling.
#include <cstring>

#include "../op_host/ms_ce_ops.cpp"

namespace {

std::string List(const std::deque<ops::OpParamDef>& params) {
    std::string out;
    for (const auto& p : params) {
        out += out.empty() ? "" : ",";
        out += "{\"name\":\"" + p.name + "\",\"required\":" + (p.option == ops::REQUIRED ? "true" : "false") +
               ",\"types\":[";
        for (size_t i = 0; i < p.types.size(); ++i) out += (i ? "," : "") + std::to_string(p.types[i]);
        out += "],\"formats\":" + std::to_string(p.formats.size()) + "}";
    }
    return "[" + out + "]";
}

std::string Describe(const ops::OpDef& op) {
    std::string attributes, configs;
    for (const auto& a : op.attributes)
        attributes += (attributes.empty() ? "" : ",") + ("[\"" + a.name + "\",\"" + a.type + "\"]");
    for (const auto& c : op.core.configs) configs += (configs.empty() ? "\"" : ",\"") + c + "\"";
    return "\"" + op.name + "\":{\"inputs\":" + List(op.inputs) + ",\"outputs\":" + List(op.outputs) +
           ",\"attributes\":[" + attributes + "],\"configs\":[" + configs + "]}";
}

}  // namespace

extern "C" const char* operators_describe() {
    static std::string text;
    text = "{";
    for (const auto& op : ops::Registry()) text += (text.size() > 1 ? "," : "") + Describe(op);
    text += "}";
    return text.c_str();
}

// Runs inference and tiling. Dimensions come one tensor after another, `ranks` of each; attributes as doubles.
extern "C" int operators_run(const char* name, const int64_t* dims, const int32_t* ranks, const int32_t* types,
                             const double* attributes, uint32_t cores, uint64_t unifiedBuffer, int64_t* outputDims,
                             int32_t* outputRanks, int32_t* outputTypes, MsCeTiling* tiling, int64_t* launch) {
    for (const auto& op : ops::Registry()) {
        if (op.name != name) continue;
        gert::TilingContext context;
        context.cores = cores;
        context.unifiedBuffer = unifiedBuffer;
        for (size_t i = 0; i < op.inputs.size(); ++i) {
            gert::StorageShape shape;
            shape.shape.SetDimNum(ranks[i]);
            for (int32_t axis = 0; axis < ranks[i]; ++axis) shape.shape.SetDim(axis, *dims++);
            context.inputs.push_back(shape);
            context.descriptions.push_back({static_cast<ge::DataType>(types[i])});
        }
        for (size_t i = 0; i < op.attributes.size(); ++i) context.attributes.Add(op.attributes[i].type, attributes[i]);
        context.outputs.resize(op.outputs.size());
        context.outputTypes.resize(op.outputs.size());
        gert::InferShapeContext shapes;
        static_cast<gert::Context&>(shapes) = context;
        gert::InferDataTypeContext dataTypes;
        static_cast<gert::Context&>(dataTypes) = context;
        if (op.inferShape(&shapes) != ge::GRAPH_SUCCESS || op.inferType(&dataTypes) != ge::GRAPH_SUCCESS) return 1;
        for (size_t i = 0; i < op.outputs.size(); ++i) {
            outputRanks[i] = static_cast<int32_t>(shapes.outputs[i].GetDimNum());
            for (int32_t axis = 0; axis < outputRanks[i]; ++axis) *outputDims++ = shapes.outputs[i].GetDim(axis);
            outputTypes[i] = dataTypes.outputTypes[i];
        }
        if (op.core.tiling(&context) != ge::GRAPH_SUCCESS) return 2;
        std::memcpy(tiling, context.tilingBytes.data(), sizeof(MsCeTiling));
        launch[0] = context.blocks;
        launch[1] = context.scheduleMode;
        launch[2] = static_cast<int64_t>(context.workspace);
        return 0;
    }
    return 3;
}
