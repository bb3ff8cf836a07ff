// dm-logits: the exact numbers llama.cpp computes, for comparing them with those of another implementation.
//
//   dm-logits MODEL REQUEST REPLY THREADS KV
//
// KV: f32 or f16, the type of the key/value cache. REQUEST (little endian int32): number of sequences, then for each
// its length n, its n token ids and n flags (1: give the logits at this position). REPLY: for each flagged position,
// in order, as many float32 values as the vocabulary has entries. Each sequence starts from an empty cache.

#include "ggml-backend.h"
#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static void fail(const std::string & what) {
    fprintf(stderr, "dm-logits: %s\n", what.c_str());
    exit(1);
}

static std::vector<int32_t> read_request(const char * path) {
    FILE * file = fopen(path, "rb");
    if (!file) fail(std::string("cannot read ") + path);
    std::vector<int32_t> values;
    int32_t buffer[4096];
    for (size_t n; (n = fread(buffer, sizeof(int32_t), 4096, file)) > 0;) values.insert(values.end(), buffer, buffer + n);
    fclose(file);
    return values;
}

static llama_context * make_context(llama_model * model, uint32_t length, int threads, bool f32) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = length + 8;
    params.n_batch = 512;
    params.n_ubatch = 512;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = f32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
    params.type_v = params.type_k;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) fail("cannot make a context of " + std::to_string(params.n_ctx) + " tokens");
    return context;
}

static void run_sequence(llama_context * context, const int32_t * tokens, const int32_t * flags, int32_t length,
                         int32_t vocabulary, FILE * reply) {
    llama_memory_clear(llama_get_memory(context), true);
    llama_batch batch = llama_batch_init(512, 0, 1);
    for (int32_t start = 0; start < length; start += 512) {
        batch.n_tokens = length - start < 512 ? length - start : 512;
        for (int32_t i = 0; i < batch.n_tokens; i++) {
            batch.token[i] = tokens[start + i];
            batch.pos[i] = start + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = flags[start + i] != 0;
        }
        if (llama_decode(context, batch) != 0) fail("llama_decode failed at position " + std::to_string(start));
        for (int32_t i = 0; i < batch.n_tokens; i++) {
            if (!flags[start + i]) continue;
            if (fwrite(llama_get_logits_ith(context, i), sizeof(float), vocabulary, reply) != (size_t) vocabulary) {
                fail("cannot write the reply: is the disk full?");
            }
        }
    }
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    if (argc != 6) fail("usage: dm-logits MODEL REQUEST REPLY THREADS f32|f16");
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
    ggml_backend_load_all(); // the CPU's own, where it is a library chosen at run time
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) fail(std::string("cannot load ") + argv[1]);
    const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

    const std::vector<int32_t> request = read_request(argv[2]);
    std::vector<size_t> starts;
    int32_t longest = 0;
    size_t at = 1;
    for (int32_t i = 0; !request.empty() && i < request[0]; i++) {
        if (at >= request.size() || request[at] <= 0 || at + 1 + 2 * (size_t) request[at] > request.size()) fail("the request is cut short");
        starts.push_back(at);
        longest = request[at] > longest ? request[at] : longest;
        at += 1 + 2 * (size_t) request[at];
    }
    if (starts.empty()) fail("the request holds no sequence");

    FILE * reply = fopen(argv[3], "wb");
    if (!reply) fail(std::string("cannot write ") + argv[3]);
    llama_context * context = make_context(model, longest, atoi(argv[4]), std::string(argv[5]) == "f32");
    for (size_t start : starts) {
        const int32_t length = request[start];
        run_sequence(context, &request[start + 1], &request[start + 1 + length], length, vocabulary, reply);
    }
    if (fclose(reply) != 0) fail("cannot finish the reply: is the disk full?");
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
