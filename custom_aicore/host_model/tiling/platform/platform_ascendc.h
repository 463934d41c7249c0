// Stand-in for the toolkit's header of the same name: the chip as the test's context describes it.
#ifndef MS_CE_HOST_MODEL_PLATFORM_ASCENDC_H
#define MS_CE_HOST_MODEL_PLATFORM_ASCENDC_H

#include "register/op_def_registry.h"

namespace platform_ascendc {

enum class CoreMemType { L0_A, L0_B, L0_C, L1, L2, UB, HBM };

class PlatformAscendC {
public:
    explicit PlatformAscendC(const gert::Context* context) : context_(context) {}
    uint32_t GetCoreNumAiv() const { return context_->cores; }
    uint32_t GetLibApiWorkSpaceSize() const { return 16 * 1024 * 1024; }
    void GetCoreMemSize(const CoreMemType& type, uint64_t& size) const {
        size = type == CoreMemType::UB ? context_->unifiedBuffer : 0;
    }

private:
    const gert::Context* context_;
};

}  // namespace platform_ascendc

#endif
