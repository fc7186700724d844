/* A model's descriptor, sizes and room, and the layout they make: {u8 text's buffer; 7 int32 of llmc_config; 6 int32 of llmc_room;
 * int32 threads; descriptor}. */
#include <stddef.h>
#include "fuzz.h"

/* The tensors must lie within the plan, the parameters one after the other. */
static void check_layout(const llmc_config *config, const llmc_room *room, const llmc_plan *plan) {
    enum { MOST = 64 };
    llmc_tensor t[MOST];
    int64_t end = 0;
    fuzz_expect(llmc_num_tensors() <= MOST && llmc_layout(config, room, t) == 0);
    for (int i = 0; i < llmc_num_tensors(); i++) {
        const int64_t last = t[i].offset + t[i].stride * (t[i].layers > 1 ? t[i].layers - 1 : 0);
        fuzz_expect(t[i].size >= 0 && t[i].offset >= 0 && t[i].stride >= 0 && last >= t[i].offset);
        if (t[i].kind != LLMC_PARAM) continue;
        fuzz_expect(t[i].offset == end);
        end = last + t[i].size;
        fuzz_expect(4 * end <= plan->params + plan->stored); /* whole masters, or both halves of them */
    }
    fuzz_expect(plan->acts >= 0 && plan->workspace >= 0 && plan->total >= plan->params + plan->stored &&
                plan->num_params > 0);
}

static void plan(llmc_config *config, const llmc_room *room, int threads, size_t size) {
    llmc_plan plan;
    if (fuzz_status(llmc_config_check(config)) < 0) return;
    if (fuzz_status(llmc_plan_memory(config, room, threads, &plan)) < 0) return;
    check_layout(config, room, &plan);
    char *text = malloc(size + !size);
    fuzz_expect(text);
    fuzz_status(llmc_plan_text(config, room, threads, text, size));
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    llmc_config config = {0}, named;
    llmc_room room = {0};
    const size_t buffer = (size_t)take_byte(&in);
    take(&in, &config, offsetof(llmc_config, untied));
    take(&in, &room, offsetof(llmc_room, lora_rank));
    const int threads = take_int(&in);
    char *descriptor = take_line(&in), *pattern = take_line(&in);
    config.untied = take_byte(&in) & 1;
    fuzz_status(llmc_config_set_pattern(&config, pattern));
    free(pattern);
    plan(&config, &room, threads, buffer);
    if (fuzz_status(llmc_config_parse(&named, descriptor)) == 0) {
        if (!named.V) named.V = 1;
        fuzz_expect(fuzz_status(llmc_config_check(&named)) == 0);
        plan(&named, &room, threads, buffer);
    }
    free(descriptor);
    return 0;
}
