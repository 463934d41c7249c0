// Definitions of the operators. tests/ascend compares them with the registration in ops/ascend/operators.py and with the kernels'
// entry points.
#include "ms_ce_host.h"

namespace ops {

using Types = std::vector<ge::DataType>;

// One column per combination of dtypes: three of logits, for class targets with both of the targets.
const Types LOGITS_AND_CLASSES = {ge::DT_FLOAT16, ge::DT_FLOAT16, ge::DT_BF16, ge::DT_BF16, ge::DT_FLOAT, ge::DT_FLOAT};
const Types CLASSES = {ge::DT_INT32, ge::DT_INT64, ge::DT_INT32, ge::DT_INT64, ge::DT_INT32, ge::DT_INT64};
const Types LOGITS = {ge::DT_FLOAT16, ge::DT_BF16, ge::DT_FLOAT};

// Declares inputs, outputs and attributes of one operator, all tensors in ND format.
class Definition {
public:
    Definition(OpDef& op, size_t combinations) : op_(op), combinations_(combinations) {}

    Definition& In(const char* name, const Types& types) {
        op_.Input(name).ParamType(REQUIRED).DataType(types).Format(Formats());
        return *this;
    }
    Definition& In(const char* name) { return In(name, Types(combinations_, ge::DT_FLOAT)); }
    Definition& Out(const char* name, const Types& types) {
        op_.Output(name).ParamType(REQUIRED).DataType(types).Format(Formats());
        return *this;
    }
    Definition& Out(const char* name) { return Out(name, Types(combinations_, ge::DT_FLOAT)); }
    Definition& Error() { return Out("error", Types(combinations_, ge::DT_INT32)); }
    Definition& Int(const char* name) {
        op_.Attr(name).AttrType(REQUIRED).Int();
        return *this;
    }
    Definition& Float(const char* name) {
        op_.Attr(name).AttrType(REQUIRED).Float();
        return *this;
    }
    Definition& Bool(const char* name) {
        op_.Attr(name).AttrType(REQUIRED).Bool();
        return *this;
    }
    template <int32_t KIND>
    void Finish() {
        op_.SetInferShape(ms_ce::InferShape<KIND>).SetInferDataType(ms_ce::InferDataType<KIND>);
        op_.AICore().SetTiling(ms_ce::Tiling<KIND>);
        op_.AICore().AddConfig("ascend910b").AddConfig("ascend910_93");
    }

private:
    std::vector<ge::Format> Formats() const { return std::vector<ge::Format>(combinations_, ge::FORMAT_ND); }

    OpDef& op_;
    size_t combinations_;
};

class MsCeForward : public OpDef {
public:
    explicit MsCeForward(const char* name) : OpDef(name) {
        Definition(*this, 6)
            .In("logits", LOGITS_AND_CLASSES)
            .In("target", CLASSES)
            .In("weight")
            .Out("loss")
            .Out("total_weight")
            .Out("lse")
            .Error()
            .Int("reduction")
            .Int("ignore_index")
            .Float("label_smoothing")
            .Float("z_loss")
            .Bool("has_weight")
            .Finish<MS_CE_FORWARD>();
    }
};
OP_ADD(MsCeForward);

class MsCeForwardGrad : public OpDef {
public:
    explicit MsCeForwardGrad(const char* name) : OpDef(name) {
        Definition(*this, 6)
            .In("logits", LOGITS_AND_CLASSES)
            .In("target", CLASSES)
            .In("weight")
            .Out("loss")
            .Out("total_weight")
            .Out("lse")
            .Out("grad_logits", LOGITS_AND_CLASSES)
            .Error()
            .Int("reduction")
            .Int("ignore_index")
            .Float("label_smoothing")
            .Float("z_loss")
            .Bool("has_weight")
            .Finish<MS_CE_FORWARD_GRAD>();
    }
};
OP_ADD(MsCeForwardGrad);

class MsCeBackward : public OpDef {
public:
    explicit MsCeBackward(const char* name) : OpDef(name) {
        Definition(*this, 6)
            .In("grad_loss")
            .In("logits", LOGITS_AND_CLASSES)
            .In("target", CLASSES)
            .In("weight")
            .In("lse")
            .In("total_weight")
            .Out("grad_logits", LOGITS_AND_CLASSES)
            .Int("reduction")
            .Int("ignore_index")
            .Float("label_smoothing")
            .Float("z_loss")
            .Bool("has_weight")
            .Int("class_offset")
            .Int("total_classes")
            .Finish<MS_CE_BACKWARD>();
    }
};
OP_ADD(MsCeBackward);

class MsCeProbForward : public OpDef {
public:
    explicit MsCeProbForward(const char* name) : OpDef(name) {
        Definition(*this, 3)
            .In("logits", LOGITS)
            .In("target", LOGITS)
            .In("weight")
            .Out("loss")
            .Out("total_weight")
            .Out("lse")
            .Out("mass")
            .Int("reduction")
            .Float("label_smoothing")
            .Float("z_loss")
            .Bool("has_weight")
            .Finish<MS_CE_PROB_FORWARD>();
    }
};
OP_ADD(MsCeProbForward);

class MsCeProbBackward : public OpDef {
public:
    explicit MsCeProbBackward(const char* name) : OpDef(name) {
        Definition(*this, 3)
            .In("grad_loss")
            .In("logits", LOGITS)
            .In("target", LOGITS)
            .In("weight")
            .In("lse")
            .In("mass")
            .In("total_weight")
            .Out("grad_logits", LOGITS)
            .Int("reduction")
            .Float("label_smoothing")
            .Float("z_loss")
            .Bool("has_weight")
            .Finish<MS_CE_PROB_BACKWARD>();
    }
};
OP_ADD(MsCeProbBackward);

class MsCePartial : public OpDef {
public:
    explicit MsCePartial(const char* name) : OpDef(name) {
        Definition(*this, 6)
            .In("logits", LOGITS_AND_CLASSES)
            .In("target", CLASSES)
            .In("weight")
            .Out("lse")
            .Out("dot")
            .Out("mass")
            .Error()
            .Int("ignore_index")
            .Float("label_smoothing")
            .Bool("has_weight")
            .Int("class_offset")
            .Int("total_classes")
            .Finish<MS_CE_PARTIAL>();
    }
};
OP_ADD(MsCePartial);

class MsCeNllForward : public OpDef {
public:
    explicit MsCeNllForward(const char* name) : OpDef(name) {
        Definition(*this, 6)
            .In("log_prob", LOGITS_AND_CLASSES)
            .In("target", CLASSES)
            .In("weight")
            .Out("loss")
            .Out("total_weight")
            .Error()
            .Int("reduction")
            .Int("ignore_index")
            .Bool("has_weight")
            .Finish<MS_CE_NLL_FORWARD>();
    }
};
OP_ADD(MsCeNllForward);

class MsCeNllBackward : public OpDef {
public:
    explicit MsCeNllBackward(const char* name) : OpDef(name) {
        Definition(*this, 6)
            .In("grad_loss")
            .In("log_prob", LOGITS_AND_CLASSES)
            .In("target", CLASSES)
            .In("weight")
            .In("total_weight")
            .Out("grad_log_prob", LOGITS_AND_CLASSES)
            .Int("reduction")
            .Int("ignore_index")
            .Bool("has_weight")
            .Finish<MS_CE_NLL_BACKWARD>();
    }
};
OP_ADD(MsCeNllBackward);

}  // namespace ops
