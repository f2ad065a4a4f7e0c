//! The requests that SGLang's router sends to a worker. The router itself is in `clients`.

use kilotok_server::ServerConfig;
use serde_json::json;

use super::server::{Server, Setup};

#[test]
fn a_router_learns_the_models_name_and_the_load() {
    let config = ServerConfig { model_root: "maker/toy".into(), ..Setup::default().config };
    let server = Server::with(config);
    for path in ["/model_info", "/get_model_info"] {
        let info = server.get(path).good();
        let right = json!({
            "model_path": "maker/toy", "tokenizer_path": "maker/toy", "is_generation": true,
        });
        assert_eq!(info, right, "{path}");
    }
    for path in ["/server_info", "/get_server_info"] {
        let info = server.get(path).good();
        assert_eq!(info["served_model_name"], "toy", "{path}");
        assert_eq!(info["context_length"], 2048, "{path}");
        assert_eq!(info["max_running_requests"], 16, "{path}");
    }
    let load = server.get("/get_load").good();
    let idle = json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]);
    assert_eq!(load, idle);
}
