// Functions of CANN's closed libraries that op_build and the operators' libraries are linked with; none of
// them runs while the definitions are read.
#include "exe_graph/runtime/runtime_attrs.h"
#include "graph/utils/type_utils.h"
#include "tiling/platform/platform_ascendc.h"

extern "C" {
int CheckLogLevel(int, int) { return 0; }
int mmGetTid() { return 0; }
void DlogRecord(int, int, const char*, ...) {}
}

namespace ge {
bool TypeUtils::GetDataTypeLength(DataType, uint32_t&) { return false; }
}  // namespace ge

namespace gert {
const void* RuntimeAttrs::GetPointerByIndex(size_t) const { return nullptr; }
}  // namespace gert

namespace platform_ascendc {
uint32_t PlatformAscendC::GetCoreNumAiv() const { return 0; }
uint32_t PlatformAscendC::GetLibApiWorkSpaceSize() const { return 0; }
void PlatformAscendC::GetCoreMemSize(const CoreMemType&, uint64_t&) const {}
}  // namespace platform_ascendc
